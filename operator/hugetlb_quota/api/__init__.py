"""The API group ``hugetlb.dev``: pydantic models of its kinds, and their CRDs.

Knows how an object looks, not how it gets here; no client, no accounting.
"""

GROUP = "hugetlb.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
