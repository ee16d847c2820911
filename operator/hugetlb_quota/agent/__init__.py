"""The node agent: limits each pod to the huge pages that the pod asks for, and reports use.

Only this package uses both the API (``kube``) and the host (``node``). If the API server can't be
reached, the agent goes on with the pods that it has seen. The agent knows no quotas: its report
names pods by UID, and the controller decides which quotas pay.
"""
