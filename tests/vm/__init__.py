"""A Kubernetes cluster with a real kubelet: each node is a virtual machine.

The control plane of `tests.kube` runs on the host, and QEMU runs the nodes. The cluster needs no
registry, no KVM and no container engine. `python -m tests.vm` makes the cluster and runs
`tests/e2e` on it.
"""
