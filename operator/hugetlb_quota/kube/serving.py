"""What admission and controller agree on: the Secret to serve with, and what is asked where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: Keys of the Secret that admission serves with: certificate chain and key, PEM, and what the
#: webhooks' paths begin with, now and before.
CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
PATH: Final = "path"
FORMER_PATH: Final = "former-path"

VALIDATE_PODS: Final = "validate-pods"
VALIDATE_QUOTAS: Final = "validate-quotas"
#: What the path of each webhook ends with, by the webhook's name.
PATHS: Final[Mapping[str, str]] = {
    "pods.hugetlb.dev": VALIDATE_PODS,
    "relabelled.pods.hugetlb.dev": VALIDATE_PODS,
    "quotas.hugetlb.dev": VALIDATE_QUOTAS,
}
