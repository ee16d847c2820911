"""The plugin ``kubectl hugetlb``: shows quotas, who fills them, and whether all is well.

It reads; a dry run is all that it ever asks the API server to do. What it shows is worked out
in pure modules, and :mod:`cluster` alone talks to the API server. Nothing heavy is imported
before a command needs it: completion and ``--help`` must answer at once.
"""
