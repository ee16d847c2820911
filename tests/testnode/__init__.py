"""A node for tests and demo: it does to cgroups what kubelet and containerd do, and no more.

It belongs to the tests and imports no product code: a naming or arithmetic mistake in the
product must not meet the same mistake here and cancel out. Containers are processes of this
host in cgroups, mount and IPC namespaces of their own; the host's programs are the image.

``python -m tests.testnode`` is the program, ``process.TestNode`` the handle that starts it.
"""
