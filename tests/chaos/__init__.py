"""Chaos: users create pods under a forest of quotas while the programs are killed and paused.

`load` makes the forest and the requests, `faults` kills and pauses, and `forwarder` acts as the
Service of the admission replicas. `observer` reads every revision from etcd and checks the limits
without the product's code.
"""
