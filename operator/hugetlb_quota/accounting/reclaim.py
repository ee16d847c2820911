"""When the pages that gone pods left in a file may be given back without being asked again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class GoneOwner:
    """A pod that is charged for pages of a file and is gone since ``since``.

    ``quotas`` are charged directly, as ``namespace/name``.
    """

    quotas: tuple[str, ...]
    since: datetime


def is_due(
    owners: Iterable[GoneOwner | None], waits: Mapping[str, timedelta], now: datetime
) -> bool:
    """Whether a file is to be reclaimed, as far as the books tell.

    :param owners: everybody who is charged for pages of it; None is one that is not gone,
        or the system.
    :param waits: for each quota that asks for it, how long a pod must be gone.

    All who are charged must be gone, and all quotas charged for it must ask: what one of
    them keeps is kept.
    """
    owners = tuple(owners)
    return bool(owners) and all(
        owner is not None
        and bool(owner.quotas)
        and all(quota in waits and now - owner.since >= waits[quota] for quota in owner.quotas)
        for owner in owners
    )
