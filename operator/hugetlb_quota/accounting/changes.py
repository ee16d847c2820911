"""Changes of the forest that admission allowed and that the API server may not have stored yet.

Admission decides on the stored quotas, and the API server stores a change after admission's
answer. Two concurrent changes can each be valid alone and together close a cycle. So admission
records each change that it allows. A related change waits until the recorded change is stored
or can't be stored any more.
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
    """A line that is not a change."""

    def __init__(self, line: str) -> None:
        super().__init__(f"{line[:200]!r} is not a change of a quota.")


@dataclass(frozen=True, slots=True)
class Change:
    """The creation or update of a quota.

    ``parent``: the new parent. ``since``: the resourceVersion of the object that the request
    updates, 0 for a creation; the API server stores an update only over this version.
    ``request``: the UID of the admission request. ``expires``: when the API request has ended at
    the latest, by the clock of the replica. Only earlier releases compare it with their clocks.
    """

    quota: QuotaKey
    parent: QuotaKey | None
    since: int
    request: str
    expires: datetime

    @property
    def line(self) -> str:
        """The change as one line of text."""
        words = (self.quota, self.parent or _NONE, self.since, self.request or _NONE)
        expires = self.expires.astimezone(UTC).strftime(_TIME)
        return " ".join((*map(str, words), expires))

    @classmethod
    def parse(cls, line: str) -> Change:
        """The change that ``line`` describes. Further words, of newer releases, are ignored.

        :raises MalformedChange: if ``line`` is not a change.
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

    def may_come(self, versions: Mapping[QuotaKey, int]) -> bool:
        """Whether the API server may still store the change, if the API request has not ended.

        :param versions: the resourceVersion of every quota, read after the change was recorded.
        """
        return versions.get(self.quota, 0) == self.since


def in_the_way(
    change: Change, others: Iterable[Change], quotas: Iterable[Quota]
) -> tuple[QuotaKey, ...]:
    """The quotas of those ``others`` that may come above or below the quota of ``change``.

    The function ignores ``childNamespaces`` and namespace labels, because these may change too.
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
