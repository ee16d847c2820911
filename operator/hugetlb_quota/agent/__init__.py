"""The node agent: holds pods to the huge pages that they ask for, and reports use.

The one place where the API's world (``kube``) and the host's (``node``) meet. Goes on
enforcing what it knows when the API server can't be reached. It knows no quotas: its report
names pods by UID, and the controller says which quotas pay for them.
"""
