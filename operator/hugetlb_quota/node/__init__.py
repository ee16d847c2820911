"""The host: cgroups, huge page pools and hugetlbfs, and the names that kubelet gives to cgroups.

This package knows no objects of the Kubernetes API, and no quotas.
"""
