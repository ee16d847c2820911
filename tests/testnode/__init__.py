"""A node for tests and the demo: it does to cgroups what kubelet and containerd do, and no more.

This package imports no product code, so that a mistake in the product's names or sums can't hide
behind the same mistake here. A container is a process of this host with its own cgroup, mount and
IPC namespaces; its image is the host's file system.

``python -m tests.testnode`` is the program; ``process.TestNode`` starts it.
"""
