"""The Kubernetes API as the programs need it: raw JSON in, small frozen values out.

Connection, informer, slim projections, compare-and-swap, events, lease. Knows the API
and accounting; knows nothing of the node, its cgroups or its files.
"""
