"""The plugin ``kubectl hugetlb``: shows quotas, the pods and files that fill them, and faults.

Except for ``uninstall``, the plugin only reads and makes dry runs. Pure modules compute what it
shows; only :mod:`cluster` talks to the API server. Heavy modules are imported only when a command
needs them: completion and ``--help`` must answer at once.
"""
