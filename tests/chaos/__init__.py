"""Chaos: users create pods under a forest of quotas while the programs are killed and paused.

`load` makes the forest and the requests. `faults` kills and pauses programs, and `forwarder` acts
as the Service of the admission replicas. `nodes` binds pods to simulated nodes, which are lost and
come back. `observer` reads every revision from etcd and checks the limits without the product's
code.
"""
