"""Hierarchical huge page quotas for Kubernetes.

A layer imports only lower layers (import-linter checks this). From the top: the programs
``admission``, ``controller``, ``agent`` and ``plugin``; ``kube`` (the API server) and ``node``
(the host); pure ``accounting``; the ``api`` models; the basic types ``page_size`` and
``quantity``.
"""
