"""Hierarchical huge page quotas for Kubernetes.

Four layers, arrows down only (import-linter holds them): the programs
``admission``, ``controller`` and ``agent``; the two worlds they talk to, ``kube``
and ``node``; pure ``accounting``; and the ``api`` on one vocabulary
(``page_size``, ``quantity``).
"""
