"""Check a new or changed quota against all other quotas: pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from hugetlb_quota.accounting.forest import Cycle, Detached, ForeignParent, Forest, Quota, QuotaKey
from hugetlb_quota.admission import quota_sentences
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.page_size import PageSize


class _Excess(NamedTuple):
    """The limit ``hard`` of a quota is above the ``limit`` of an ancestor, in bytes.

    ``ancestor``: the nearest ancestor that limits ``size``.
    """

    quota: QuotaKey
    size: PageSize
    hard: int
    ancestor: QuotaKey
    limit: int


#: Labels that a pod gets when it is bound: from the node since Kubernetes 1.35 (the admission
#: plugin PodTopologyLabels), or from the scheduler. The webhook for pods does not see the binding.
BOUND_PREFIX: Final = "topology.kubernetes.io/"


def selector_fault(old: QuotaObject | None, new: QuotaObject) -> str:
    """Why a new or changed selector is refused; "" if it is not.

    An unchanged selector is not checked, so that the rest of its quota can be changed.

    :param old: the stored quota; None if there is none, or if its spec is invalid.
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
    """The forest before and after one quota is created or changed.

    :param old: the stored quota; None if there is none, or if its spec is invalid.
    :param quotas: all valid quotas of the cluster.
    :param namespaces: the labels of all namespaces, by name.
    """

    def __init__(
        self,
        old: QuotaObject | None,
        new: QuotaObject,
        quotas: Iterable[QuotaObject],
        namespaces: Mapping[str, Mapping[str, str]],
    ) -> None:
        self._key, self._old, self._new = new.key, old, new
        self._others = {quota.key: quota for quota in quotas if quota.key != new.key}
        others = [each.quota for each in self._others.values()]
        self._before = Forest([*others, *([] if old is None else [old.quota])], namespaces)
        self._after = Forest([*others, new.quota], namespaces)
        #: Sentences for the user if the change is allowed; complete when :meth:`refusal` returned.
        self.warnings: list[str] = []

    @property
    def charge_moves(self) -> bool:
        """Whether the quota gets another parent while something is charged to the quota."""
        old = self._old
        return (
            old is not None
            and old.quota.parent != self._new.quota.parent
            and bool(old.counter.used)
        )

    def refusal(self) -> str:
        """Why the change is refused; "" if it is allowed."""
        key, old = self._key, self._old
        try:
            self._after.chain(key)
        except Detached as error:
            if broken := _own_broken_link(self._after, key, error):
                return quota_sentences.broken_chain(key, broken)
            if old is not None and self.charge_moves:
                return quota_sentences.move_to_nowhere(old.counter, error)
            self.warnings.append(quota_sentences.waits_for_parent(key, error))
        for excess in _excesses(self._after, key):
            if _is_new(excess, self._before, self._new.quota, old):
                return _excess_refusal(key, excess)
            self.warnings.append(quota_sentences.attaches_above(*excess))
        # A limit of 0 is a limit, so the sizes count here.
        if not len(self._new.quota.hard) and (old is None or len(old.quota.hard)):
            self.warnings.append(quota_sentences.limits_nothing(key))
        self.warnings += _below_use(self._new, old)
        if old is not None and _may_select_more(old.quota, self._new.quota):
            quotas = {**self._others, key: self._new}
            counters = [quotas[link.key].counter for link in self._after.attached(key)]
            self.warnings.append(quota_sentences.selects_more(key, counters))
        if lost := _lost_children(self._before, self._after, key):
            self.warnings.append(quota_sentences.loses_children(key, lost))
        return ""

    def joined(self) -> tuple[QuotaObject, ...]:
        """The ancestors that the quota does not have yet, each before its own ancestors.

        :raises Detached: if the new chain does not reach a root.
        """
        charged = {link.key for link in self._before.attached(self._key)} | {self._key}
        chain = self._after.chain(self._key)
        return tuple(self._others[link.key] for link in chain if link.key not in charged)

    def forest(self) -> Iterable[Quota]:
        """All quotas; the changed quota as it was and as it will be."""
        return [*self._before, self._new.quota]


def _own_broken_link(forest: Forest, key: QuotaKey, error: Detached) -> Detached | None:
    """The fault of the link from ``key`` to its parent; None if a link further up is broken.

    A missing parent is no fault: the quota may wait for the parent. A cycle always is a fault.
    """
    if isinstance(error, Cycle) or (isinstance(error, ForeignParent) and error.quota == key):
        return error
    if error.quota != key:
        # A quota stays charged to a parent that no longer lets it attach. The path of the charges
        # must not be a cycle either.
        path = [link.key for link in forest.attached(key)]
        above = forest.parent(forest[path[-1]])
        if above is not None and above.key == key:
            return Cycle(key, [*path, key])
    return None


def _excesses(forest: Forest, key: QuotaKey) -> list[_Excess]:
    """The excesses of ``key`` and of all quotas attached below."""
    found = []
    for quota in _at_and_below(forest, key):
        ancestors = forest.attached(quota.key)[1:]
        for size, hard in quota.hard.items():
            nearest = next((each for each in ancestors if size in each.hard), None)
            if nearest is not None and hard > nearest.hard[size]:
                found.append(_Excess(quota.key, size, hard, nearest.key, nearest.hard[size]))
    return found


def _at_and_below(forest: Forest, key: QuotaKey) -> Iterable[Quota]:
    """The quota ``key``, and all quotas attached below."""
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


def _is_new(excess: _Excess, before: Forest, new: Quota, old: QuotaObject | None) -> bool:
    """Whether the change of ``new`` causes ``excess``, or makes it larger.

    If not, the quota had the same excess before, or was not attached before: it waited for its
    parent to be created.
    """
    if old is None:
        return excess.quota == new.key
    moved = old.quota.parent != new.parent
    excesses = {(each.quota, each.size): each for each in _excesses(before, new.key)}
    same = excesses.get((excess.quota, excess.size))
    if excess.quota == new.key:
        return moved or same is None or excess.hard > same.hard
    attached = excess.quota in {each.key for each in _at_and_below(before, new.key)}
    return attached and (same is None or excess.limit < same.limit)


def _excess_refusal(key: QuotaKey, excess: _Excess) -> str:
    """The sentence that refuses a change of ``key`` because of ``excess``."""
    quota, size, hard, ancestor, limit = excess
    if quota == key:
        return quota_sentences.above_ancestor(key, size, hard, ancestor, limit)
    return quota_sentences.below_descendant(key, size, limit, ancestor, quota, hard)


def _below_use(new: QuotaObject, old: QuotaObject | None) -> list[str]:
    """A warning for each changed limit that is below the use."""
    if old is None:
        return []
    counter = new.counter
    return [
        quota_sentences.below_use(counter, size)
        for size, limit in counter.hard.items()
        if counter.used.of(size) > limit and old.counter.hard.get(size) != limit
    ]


def _may_select_more(old: Quota, new: Quota) -> bool:
    """Whether ``new`` may select a pod that ``old`` does not: a requirement of ``old`` is gone."""
    return not set(old.pod_selector.requirements) <= set(new.pod_selector.requirements)


def _lost_children(before: Forest, after: Forest, key: QuotaKey) -> list[QuotaKey]:
    """The children that ``key`` no longer lets attach."""
    if key not in before:
        return []
    return [
        each.key
        for each in before.children(key)
        if before.admits(before[key], each.key) and not after.admits(after[key], each.key)
    ]
