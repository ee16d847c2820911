"""The controller: count what is charged to each quota, and write the quotas' status.

One controller leads, by a Lease. The leader writes:

- the status of HugeTLBQuotas, their finalizer, kopf's annotations, and the label of deleted quotas;
- the spec of HugeTLBNodes;
- the Secrets of the webhooks' certificates, and the webhook configuration;
- Events.

The controller only reads pods, Nodes, namespaces and Services.
"""
