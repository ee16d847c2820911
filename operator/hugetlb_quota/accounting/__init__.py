"""Pure accounting: which quota is charged for which pod, and whether a demand fits.

No I/O, no Kubernetes client, no kopf, no os: values in, values out.
"""
