"""The Kubernetes API as the programs need it: raw JSON in, small frozen values out.

This package has the connection, informers, projections of objects, compare-and-swap, Events and
the Lease. It uses ``api`` and ``accounting``, and not ``node``.
"""

import os

# The kubernetes package looks up the home directory at import, and fails without one. A container's
# user may have no entry in /etc/passwd, and the container runtime may not set HOME.
os.environ.setdefault("HOME", "/")
