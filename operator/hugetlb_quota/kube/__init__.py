"""The Kubernetes API as the programs need it: raw JSON in, small frozen values out.

Connection, informer, slim projections, compare-and-swap, events, lease. Knows the API
and accounting; knows nothing of the node, its cgroups or its files.
"""

import os

# The kubernetes package asks for a home directory as it is imported, and fails without one: a
# container's user may have no entry in /etc/passwd, and HOME only what its runtime gives.
os.environ.setdefault("HOME", "/")
