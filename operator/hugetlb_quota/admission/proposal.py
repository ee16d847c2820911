"""A quota as it is to be, in the forest that there is: what is wrong with that.

No requests are made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from hugetlb_quota.accounting.forest import Cycle, Detached, ForeignParent, Forest, Quota, QuotaKey
from hugetlb_quota.admission import quota_sentences
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.page_size import PageSize


class _Excess(NamedTuple):
    """A quota whose limit of a size is above that of the nearest ancestor that has one."""

    quota: QuotaKey
    size: PageSize
    hard: int
    ancestor: QuotaKey
    limit: int


#: Labels that come with the binding: from the node since Kubernetes 1.35 (its admission plugin
#: PodTopologyLabels), or from the scheduler. No webhook on pods is asked about them.
BOUND_PREFIX: Final = "topology.kubernetes.io/"


def selector_fault(old: QuotaObject | None, new: QuotaObject) -> str:
    """What is wrong with a selector that is new; "" when nothing is.

    One that is stored already stays, so that the rest of its quota can be changed.
    """
    pods, children = new.quota.pod_selector, new.quota.child_namespaces
    if old is None or old.quota.pod_selector != pods:
        bound = sorted(key for key in pods.keys if key.startswith(BOUND_PREFIX))
        if bound:
            return quota_sentences.bound_label(new.key, bound[0])
        if why := pods.fault():
            return quota_sentences.wrong_selector(new.key, "podSelector", "pod", why)
    unchanged = old is not None and old.quota.child_namespaces == children
    if children is not None and not unchanged and (why := children.fault()):
        return quota_sentences.wrong_selector(new.key, "childNamespaces", "namespace", why)
    return ""


class Proposal:
    """The forest before and after a change of one quota.

    :param old: the quota as it is; None when it is to be made, or can't be understood.
    :param quotas: all that can be understood.
    """

    def __init__(
        self,
        old: QuotaObject | None,
        new: QuotaObject,
        quotas: Iterable[QuotaObject],
        namespaces: Mapping[str, Mapping[str, str]],
    ) -> None:
        self._key, self._old, self._new = new.key, old, new
        self._known = {quota.key: quota for quota in quotas if quota.key != new.key}
        others = [each.quota for each in self._known.values()]
        self._before = Forest([*others, *([] if old is None else [old.quota])], namespaces)
        self._after = Forest([*others, new.quota], namespaces)
        #: What to tell when it is allowed; complete when :meth:`refusal` has returned.
        self.warnings: list[str] = []

    @property
    def charge_moves(self) -> bool:
        """Whether something that is charged comes under other ancestors."""
        old = self._old
        return (
            old is not None
            and old.quota.parent != self._new.quota.parent
            and bool(old.counter.used)
        )

    def refusal(self) -> str:
        """Why the change can't be; "" when it can."""
        key, old = self._key, self._old
        try:
            self._after.chain(key)
        except Detached as error:
            if broken := _own_fault(self._after, key, error):
                return quota_sentences.broken_chain(key, broken)
            if old is not None and self.charge_moves:
                return quota_sentences.move_to_nowhere(old.counter, error)
            self.warnings.append(quota_sentences.waits_for_parent(key, error))
        for excess in _excesses(self._after, key):
            if _is_news(excess, self._before, self._new.quota, old):
                return _refusal(key, excess)
            self.warnings.append(quota_sentences.attaches_above(*excess))
        self.warnings += _below_use(self._new, old)
        if old is not None and _may_select_more(old.quota, self._new.quota):
            known = {**self._known, key: self._new}
            counters = [known[link.key].counter for link in self._after.attached(key)]
            self.warnings.append(quota_sentences.selects_more(key, counters))
        if lost := _lost_children(self._before, self._after, key):
            self.warnings.append(quota_sentences.loses_children(key, lost))
        return ""

    def joined(self) -> tuple[QuotaObject, ...]:
        """The ancestors that are new to it, each before its own.

        :raises Detached: when its chain does not hold.
        """
        charged = {link.key for link in self._before.attached(self._key)} | {self._key}
        chain = self._after.chain(self._key)
        return tuple(self._known[link.key] for link in chain if link.key not in charged)

    def forest(self) -> Iterable[Quota]:
        """All quotas, this one as it is and as it is to be."""
        return [*self._before, self._new.quota]


def _own_fault(forest: Forest, key: QuotaKey, error: Detached) -> Detached | None:
    """What is wrong with the place of ``key`` itself; a link further up is not its fault."""
    if isinstance(error, Cycle) or (isinstance(error, ForeignParent) and error.quota == key):
        return error
    if error.quota != key:
        # Where charges go, whether or not they may any more: that must be no circle either.
        path = [link.key for link in forest.attached(key)]
        above = forest.parent(forest[path[-1]])
        if above is not None and above.key == key:
            return Cycle(key, [*path, key])
    return None


def _excesses(forest: Forest, key: QuotaKey) -> list[_Excess]:
    """Those of ``key`` and of all quotas attached below it."""
    found = []
    for quota in _at_and_below(forest, key):
        ancestors = forest.attached(quota.key)[1:]
        for size, hard in quota.hard.items():
            nearest = next((each for each in ancestors if size in each.hard), None)
            if nearest is not None and hard > nearest.hard[size]:
                found.append(_Excess(quota.key, size, hard, nearest.key, nearest.hard[size]))
    return found


def _at_and_below(forest: Forest, key: QuotaKey) -> Iterable[Quota]:
    children: dict[QuotaKey, list[Quota]] = {}
    for quota in forest:
        if (parent := forest.parent(quota)) is not None:
            children.setdefault(parent.key, []).append(quota)
    reached: dict[QuotaKey, Quota] = {}
    level = [forest[key]]
    while level:
        reached |= {quota.key: quota for quota in level}
        below = [child for quota in level for child in children.get(quota.key, ())]
        level = [child for child in below if child.key not in reached]
    return reached.values()


def _is_news(excess: _Excess, before: Forest, new: Quota, old: QuotaObject | None) -> bool:
    """Whether this very change makes ``excess``, rather than finds it.

    It finds it when the quota below was not attached here before (it waited for its
    parent to appear), or had as much too much already.
    """
    if excess.quota == new.key:
        if old is None or old.quota.parent != new.parent:
            return True
        known = {(each.quota, each.size): each for each in _excesses(before, new.key)}
        same = known.get((excess.quota, excess.size))
        return same is None or excess.hard > same.hard
    if old is None:
        return False
    known = {(each.quota, each.size): each for each in _excesses(before, new.key)}
    same = known.get((excess.quota, excess.size))
    attached = excess.quota in {each.key for each in _at_and_below(before, new.key)}
    return attached and (same is None or excess.limit < same.limit)


def _refusal(key: QuotaKey, excess: _Excess) -> str:
    quota, size, hard, ancestor, limit = excess
    if quota == key:
        return quota_sentences.above_ancestor(key, size, hard, ancestor, limit)
    return quota_sentences.below_descendant(key, size, limit, ancestor, quota, hard)


def _below_use(new: QuotaObject, old: QuotaObject | None) -> list[str]:
    if old is None:
        return []
    counter = new.counter
    return [
        quota_sentences.below_use(counter, size)
        for size, limit in counter.hard.items()
        if counter.used.of(size) > limit and old.counter.hard.get(size) != limit
    ]


def _may_select_more(old: Quota, new: Quota) -> bool:
    """Whether ``new`` may select a pod that ``old`` does not: it lacks one of its conditions."""
    return not set(old.pod_selector.requirements) <= set(new.pod_selector.requirements)


def _lost_children(before: Forest, after: Forest, key: QuotaKey) -> list[QuotaKey]:
    if key not in before:
        return []
    return [
        each.key
        for each in before.children(key)
        if before.admits(before[key], each.key) and not after.admits(after[key], each.key)
    ]
