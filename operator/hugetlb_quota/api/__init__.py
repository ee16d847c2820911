"""The API group ``hugetlb.dev``: pydantic models of its kinds, and their CRDs.

The models describe the objects. This package has no API client and no accounting.
"""

GROUP = "hugetlb.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
