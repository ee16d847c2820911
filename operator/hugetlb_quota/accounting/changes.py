"""Changes of the forest that were allowed and may not be stored yet.

Admission decides on the quotas as they are stored, and the API server stores a change after
the answer. Of two changes at the same time each could be right alone, and both together close
a cycle. So every change that is allowed is noted, and one that it may bear on waits until it
is seen to be stored, or can't be any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from hugetlb_quota.accounting.forest import Quota, QuotaKey

_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_NONE: Final = "-"


class MalformedChange(ValueError):
    """A line that is no change."""

    def __init__(self, line: str) -> None:
        super().__init__(f"{line[:200]!r} is no change of a quota.")


@dataclass(frozen=True, slots=True)
class Change:
    """A quota that is to be made or changed.

    ``parent``: the one that it is to have. ``since``: the resourceVersion of the very object
    that is changed, 0 for a quota that is to be made: the API server stores nothing over
    another. ``request``: the UID of the admission request. ``expires``: when the API request
    can't be under way any more.
    """

    quota: QuotaKey
    parent: QuotaKey | None
    since: int
    request: str
    expires: datetime

    @property
    def line(self) -> str:
        """As it is written."""
        words = (self.quota, self.parent or _NONE, self.since, self.request or _NONE)
        expires = self.expires.astimezone(UTC).strftime(_TIME)
        return " ".join((*map(str, words), expires))

    @classmethod
    def parse(cls, line: str) -> Change:
        """The change that ``line`` is; further words are of newer releases.

        :raises MalformedChange: when it is none.
        """
        try:
            quota, parent, since, request, expires, *_ = line.split(" ")
            return cls(
                quota=QuotaKey.parse(quota),
                parent=None if parent == _NONE else QuotaKey.parse(parent),
                since=int(since),
                request="" if request == _NONE else request,
                expires=datetime.strptime(expires, _TIME).replace(tzinfo=UTC),
            )
        except ValueError as error:
            raise MalformedChange(line) from error

    def may_come(self, versions: Mapping[QuotaKey, int], now: datetime) -> bool:
        """Whether it may yet be stored.

        :param versions: the resourceVersion of every quota that was there later than this
            change was noted.
        """
        return versions.get(self.quota, 0) == self.since and now < self.expires


def in_the_way(
    change: Change, others: Iterable[Change], quotas: Iterable[Quota]
) -> tuple[QuotaKey, ...]:
    """Those of ``others`` that bear on ``change``: of quotas above or below it, or that may be.

    Who may attach is not looked at: that may change too.
    """
    others = [each for each in others if each.quota != change.quota]
    above: dict[QuotaKey, set[QuotaKey]] = {}
    below: dict[QuotaKey, set[QuotaKey]] = {}

    def link(child: QuotaKey, parent: QuotaKey | None) -> None:
        if parent is not None:
            above.setdefault(child, set()).add(parent)
            below.setdefault(parent, set()).add(child)

    for quota in quotas:
        link(quota.key, quota.parent)
        link(quota.key, quota.attached_to)
    for each in (change, *others):
        link(each.quota, each.parent)
    related = _reached(change.quota, above) | _reached(change.quota, below)
    return tuple(sorted({each.quota for each in others} & related))


def _reached(start: QuotaKey, links: Mapping[QuotaKey, set[QuotaKey]]) -> set[QuotaKey]:
    reached: set[QuotaKey] = set()
    level = {start}
    while level:
        reached |= level
        level = set[QuotaKey]().union(*(links.get(key, ()) for key in level)) - reached
    return reached
