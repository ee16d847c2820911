"""The node agent: holds governed pods to their huge pages, and reports what it sees.

The one place where the API's world (``kube``) and the host's (``node``) meet. Goes on
enforcing what it knows when the API server can't be reached.
"""
