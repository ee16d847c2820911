"""The stored state of the webhooks' certificates: CAs, serving certificate, paths, and trust."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from hugetlb_quota.controller.certificates.authority import Pair


@dataclass(frozen=True, slots=True)
class Authorities:
    """The CAs, in the Secret of the CA.

    ``current``: the CA that signs. ``next``: the CA that will sign. ``retired``: the CAs, as PEM,
    that signed before and are still trusted.

    ``trusted_since`` and ``next_trusted_since``: when ``current`` and ``next`` were in the webhook
    configuration. ``served_since``: when the serving certificate was one of ``current``, noted
    only while there are retired CAs. ``rotation_requested``: whether an administrator wants a new
    CA now.
    """

    current: Pair | None = None
    trusted_since: datetime | None = None
    next: Pair | None = None
    next_trusted_since: datetime | None = None
    retired: tuple[str, ...] = ()
    served_since: datetime | None = None
    rotation_requested: bool = False


@dataclass(frozen=True, slots=True)
class Serving:
    """Admission's certificate, and the secret parts of its paths, in the Secret of admission.

    Admission answers on ``path`` and on ``former_path``. ``path_since``: when ``path`` replaced
    ``former_path``.
    """

    pair: Pair | None = None
    path: str = ""
    former_path: str = ""
    path_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Trust:
    """The part of the webhook configuration that the API server needs to call admission.

    ``bundle``: the trusted CAs, as PEM. ``path``: the secret part of the paths. ``uniform``:
    whether all webhooks have the same CAs and path.
    """

    bundle: tuple[str, ...] = ()
    path: str = ""
    uniform: bool = True


@dataclass(frozen=True, slots=True)
class State:
    """Everything that is stored; ``configured`` is in the webhook configuration."""

    authorities: Authorities
    serving: Serving
    configured: Trust
