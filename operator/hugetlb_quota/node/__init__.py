"""The host: cgroups, huge page pools and kubelet's naming, read and written as files.

Knows the kernel and how kubelet names things, not Kubernetes objects and no quotas.
"""
