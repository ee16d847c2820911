"""A Kubernetes cluster whose nodes are virtual machines with a real kubelet, made from nothing.

The control plane of `tests.kube` runs on the host; QEMU runs the nodes. No registry, no KVM and
no container engine is needed. `python -m tests.vm` makes the cluster and runs `tests/e2e` on it.
"""
