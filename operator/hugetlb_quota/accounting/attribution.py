"""Who pays for a pod, living or gone: the one rule that maps a UID to quotas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.accounting.reservation import Reservation

NOBODY: frozenset[QuotaKey] = frozenset()


@dataclass(frozen=True, slots=True)
class Line:
    """What quotas' reservations say of a pod: the last resort where nobody else knows it.

    ``pod`` is its ``namespace/name``. ``quotas``: those that have such a line and are above
    no other that has one. ``counted``: as in :class:`Reservation`; "" when all are charged.
    """

    uid: str
    pod: str
    charge: Charge
    quotas: frozenset[QuotaKey]
    counted: str = ""


@dataclass(frozen=True, slots=True)
class Attribution:
    """The rule, with all that it looks at.

    ``heirs``: by node and UID, who pays for what a pod that is gone left on that node, and
    whose quota was deleted. ``lines``: what the quotas' reservations say, by UID.
    """

    forest: Forest
    heirs: Mapping[tuple[str, str], frozenset[QuotaKey]] = field(default_factory=dict)
    lines: Mapping[str, Line] = field(default_factory=dict)

    def who_pays(
        self,
        uid: str,
        namespace: str = "",
        labels: Mapping[str, str] | None = None,
        node: str | None = None,
        *,
        partial: bool = False,
    ) -> frozenset[QuotaKey]:
        """The quotas that are charged directly for the pod ``uid``.

        By :meth:`by_rule`; where that names none, those that have its line.

        :param namespace: "" when neither the API nor a report ever told of the pod.
        :param labels: the last that are known; ``partial``: it has more.
        :param node: where it runs or ran; None when it is bound to none.
        """
        ruled = self.by_rule(uid, namespace, labels, node, partial=partial)
        return self.by_line(uid) if ruled is None else ruled

    def by_rule(
        self,
        uid: str,
        namespace: str,
        labels: Mapping[str, str] | None,
        node: str | None,
        *,
        partial: bool = False,
    ) -> frozenset[QuotaKey] | None:
        """The quotas that govern the pod, and its heirs; None when there are neither.

        A quota that is being deleted governs it only until an heir is named. Of a pod that has
        more than these ``labels`` every quota does that may.
        """
        named = self.heirs.get((node or "", uid))
        inherited = named is not None
        governing = frozenset(
            quota.key
            for quota in self.forest.selecting(namespace, labels or {}, partial=partial)
            if not (inherited and quota.terminating)
        )
        heirs = frozenset(key for key in named or NOBODY if key in self.forest)
        return governing | heirs if governing or inherited else None

    def by_line(self, uid: str) -> frozenset[QuotaKey]:
        """The quotas that have the pod's line."""
        line = self.lines.get(uid)
        return NOBODY if line is None else line.quotas


def read_lines(counters: Iterable[Counter], forest: Forest) -> Mapping[str, Line]:
    """What all reservations say of each pod, by UID.

    Those of quotas that move are among them; no pod has their UID.
    """
    found: dict[str, dict[QuotaKey, Reservation]] = {}
    for counter in counters:
        for uid, each in lines_of(counter).items():
            found.setdefault(uid, {})[counter.quota] = each
    return {uid: line_of(uid, held, forest) for uid, held in found.items()}


def lines_of(counter: Counter) -> Mapping[str, Reservation]:
    """What the reservations of one quota say of each pod, by UID."""
    held: dict[str, Reservation] = {}
    for each in counter.reservations:
        known = held.get(each.uid)
        # Of two on one quota the identity says more.
        if known is None or (each.counted and not known.counted):
            held[each.uid] = each
    return held


def line_of(uid: str, held: Mapping[QuotaKey, Reservation], forest: Forest) -> Line:
    """What all quotas that hold a reservation of the pod ``uid`` say of it."""
    # An identity stands only where the pod was charged directly, a reservation above it too.
    identities = {key: each for key, each in held.items() if each.counted}
    above = {
        link.key
        for key in held
        if key in forest
        for link in forest.attached(key)
        if link.key != key
    }
    first = next(iter((identities or held).values()))
    counted = {each.counted for each in identities.values()}
    return Line(
        uid=uid,
        pod=first.pod,
        charge=_largest(held.values()),
        quotas=frozenset(identities) | (held.keys() - above),
        counted=max(counted, key=_knows) if counted else "",
    )


def _largest(lines: Iterable[Reservation]) -> Charge:
    charge = Charge()
    for each in lines:
        charge = charge.peak(each.charge)
    return charge


def _knows(counted: str) -> tuple[int, str]:
    """A node's name says more than that there is none, and that more than nothing."""
    return ("?-".find(counted) if counted in ("?", "-") else 2, counted)
