"""The one rule that maps a pod's UID to the quotas that pay, for live and for gone pods."""

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
    """A pod as the reservations of quotas describe it.

    The attribution uses a line only if no other source knows the pod.

    ``pod``: the pod's ``namespace/name``. ``quotas``: the quotas that hold an identity of the
    pod, and the lowest quotas that hold a reservation. ``counted``: as in :class:`Reservation`;
    "" if no quota holds an identity.
    """

    uid: str
    pod: str
    charge: Charge
    quotas: frozenset[QuotaKey]
    counted: str = ""


@dataclass(frozen=True, slots=True)
class Attribution:
    """The rule and its inputs.

    ``heirs``: the quotas that pay for a gone pod after its own quota was deleted, by node name
    and UID. ``lines``: the lines of the quotas' reservations, by UID.
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
        labels_left_out: bool = False,
    ) -> frozenset[QuotaKey]:
        """The quotas that are charged directly for the pod ``uid``.

        :meth:`by_rule` decides; if it returns None, :meth:`by_line` does.

        :param namespace: "" if neither the API nor a report ever named the pod.
        :param labels: the pod's labels in the API, or else in the last report.
        :param node: the node that the pod is or was bound to; None for an unbound pod.
        :param labels_left_out: whether the pod has more labels than ``labels``.
        """
        ruled = self.by_rule(uid, namespace, labels, node, labels_left_out=labels_left_out)
        return self.by_line(uid) if ruled is None else ruled

    def by_rule(
        self,
        uid: str,
        namespace: str,
        labels: Mapping[str, str] | None,
        node: str | None,
        *,
        labels_left_out: bool = False,
    ) -> frozenset[QuotaKey] | None:
        """The quotas that govern the pod, and the pod's heirs.

        None if no quota governs the pod and no heirs are named. A quota that is being deleted
        governs the pod only until heirs are named. If the pod has more labels than ``labels``
        (``labels_left_out``), every quota that may select the pod governs the pod.
        """
        named = self.heirs.get((node or "", uid))
        inherited = named is not None
        governing = frozenset(
            quota.key
            for quota in self.forest.selecting(
                namespace, labels or {}, labels_left_out=labels_left_out
            )
            if not (inherited and quota.terminating)
        )
        heirs = frozenset(key for key in named or NOBODY if key in self.forest)
        return governing | heirs if governing or inherited else None

    def by_line(self, uid: str) -> frozenset[QuotaKey]:
        """The quotas of the pod's line; empty if the pod has no line."""
        line = self.lines.get(uid)
        return NOBODY if line is None else line.quotas


def read_lines(counters: Iterable[Counter], forest: Forest) -> Mapping[str, Line]:
    """The line of each pod that has a reservation, by UID.

    The result also has the lines of quotas that move; no pod has the UID of a quota.
    """
    found: dict[str, dict[QuotaKey, Reservation]] = {}
    for counter in counters:
        for uid, each in lines_of(counter).items():
            found.setdefault(uid, {})[counter.quota] = each
    return {uid: line_of(uid, held, forest) for uid, held in found.items()}


def lines_of(counter: Counter) -> Mapping[str, Reservation]:
    """One reservation of each pod on this quota, by UID: the pod's identity if there is one."""
    held: dict[str, Reservation] = {}
    for each in counter.reservations:
        previous = held.get(each.uid)
        if previous is None or (each.counted and not previous.counted):
            held[each.uid] = each
    return held


def line_of(uid: str, held: Mapping[QuotaKey, Reservation], forest: Forest) -> Line:
    """The line of the pod ``uid``, from the quotas that hold a reservation of the pod."""
    # Only the quotas that are charged directly hold an identity. All quotas of the chain hold
    # a reservation.
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
        counted=max(counted, key=_specificity) if counted else "",
    )


def _largest(lines: Iterable[Reservation]) -> Charge:
    charge = Charge()
    for each in lines:
        charge = charge.peak(each.charge)
    return charge


def _specificity(counted: str) -> tuple[int, str]:
    """The sort key of ``counted``: SOMEWHERE, then UNBOUND, then the names of nodes."""
    return ("?-".find(counted) if counted in ("?", "-") else 2, counted)
