"""Chaos: pods race for a forest of quotas while everything that decides is killed and paused.

`load` makes the forest and the race, `faults` does the harm, `forwarder` stands for the Service
of the admission replicas. `observer` reads every revision from etcd and does its own sums: it
shares no code with the product.
"""
