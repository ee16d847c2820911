"""The keys of admission's Secret and the paths of the webhooks, for admission and controller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: The keys of admission's Secret: the certificate chain and the private key (PEM), and the
#: present and the former prefix of the webhooks' paths.
CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
PATH: Final = "path"
FORMER_PATH: Final = "former-path"

VALIDATE_PODS: Final = "validate-pods"
VALIDATE_QUOTAS: Final = "validate-quotas"
#: The last part of each webhook's path, by the webhook's name.
PATHS: Final[Mapping[str, str]] = {
    "pods.hugetlb.dev": VALIDATE_PODS,
    "relabelled.pods.hugetlb.dev": VALIDATE_PODS,
    "quotas.hugetlb.dev": VALIDATE_QUOTAS,
}
