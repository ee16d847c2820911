"""Pure accounting: what is charged to whom, and whether there is room.

No I/O, no Kubernetes client, no kopf, no os: values in, values out.
"""
