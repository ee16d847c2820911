"""The forest of quotas: parents, chains, and which quota may attach to which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.selector import Selector

#: The largest number of quotas on a chain. Admission writes each quota of the chain for each
#: pod, and must answer within the webhook's timeout. A longer chain is refused like a cycle.
LONGEST_CHAIN = 16


class QuotaKey(NamedTuple):
    """The name of a quota in the cluster, printed as ``namespace/name``."""

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> QuotaKey:
        """From ``namespace/name``."""
        namespace, _, name = text.partition("/")
        return cls(namespace, name)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Quota:
    """The fields of a HugeTLBQuota that the forest uses.

    ``hard``: the limit of each size that the quota limits. ``child_namespaces``: selects, by
    labels, other namespaces; their quotas may attach. None selects none. ``reclaim_after``: how
    long a pod must be gone before the agent removes the pod's files; None keeps the files.
    ``reparents``: whether the retained charges go to the parent when the quota is deleted.
    ``generation``: of the spec. ``attached_to``: the parent that was last charged for this
    quota. The parent stays charged even if it no longer lets this quota attach.
    """

    key: QuotaKey
    hard: Charge = NOTHING
    parent: QuotaKey | None = None
    pod_selector: Selector = Selector()
    child_namespaces: Selector | None = None
    reparents: bool = False
    reclaim_after: timedelta | None = None
    terminating: bool = False
    uid: str = ""
    generation: int = 1
    attached_to: QuotaKey | None = None


class Detached(ValueError):
    """A chain does not reach a root; the link from ``quota`` to ``parent`` is broken."""

    reason = "Detached"

    def __init__(self, quota: QuotaKey, parent: QuotaKey, sentence: str) -> None:
        super().__init__(sentence)
        self.quota = quota
        self.parent = parent


class ParentNotFound(Detached):
    """The parent that a quota names does not exist."""

    reason = "ParentNotFound"

    def __init__(self, quota: QuotaKey, parent: QuotaKey) -> None:
        super().__init__(
            quota,
            parent,
            f"HugeTLBQuota {quota} names the parent {parent}, which does not exist;"
            f" create {parent}, or correct spec.parentRef of {quota}.",
        )


class ForeignParent(Detached):
    """The parent does not let quotas of this namespace attach."""

    reason = "ForeignParent"

    def __init__(self, quota: QuotaKey, parent: QuotaKey) -> None:
        super().__init__(
            quota,
            parent,
            f"HugeTLBQuota {parent} does not let quotas of namespace {quota.namespace} attach,"
            f" so {quota} can't; label the namespace as spec.childNamespaces of {parent} asks,"
            " or widen that selector.",
        )


class Cycle(Detached):
    """The chain is a cycle or has more than LONGEST_CHAIN quotas."""

    reason = "Cycle"

    def __init__(self, quota: QuotaKey, path: Iterable[QuotaKey]) -> None:
        walked = tuple(path)
        is_cycle = len(set(walked)) < len(walked)
        where = "in a cycle" if is_cycle else f"over more than {LONGEST_CHAIN} levels"
        super().__init__(
            quota,
            walked[-1],
            f"The parents of HugeTLBQuota {quota} lead {where}:"
            f" {' -> '.join(map(str, walked))}; change spec.parentRef of one of them.",
        )
        self.path = walked


class Forest:
    """Quotas by key, with the labels of their namespaces.

    :param quotas: all quotas, or at least all quotas on the chains that the caller needs.
    :param namespaces: labels by namespace; a missing namespace has no labels.
    """

    def __init__(
        self, quotas: Iterable[Quota], namespaces: Mapping[str, Mapping[str, str]]
    ) -> None:
        self._quotas = {quota.key: quota for quota in quotas}
        self._namespaces = namespaces
        self._by_namespace: dict[str, list[Quota]] = {}
        for quota in self._quotas.values():
            self._by_namespace.setdefault(quota.key.namespace, []).append(quota)

    def __iter__(self) -> Iterator[Quota]:
        return iter(self._quotas.values())

    def __contains__(self, key: QuotaKey) -> bool:
        return key in self._quotas

    def __getitem__(self, key: QuotaKey) -> Quota:
        return self._quotas[key]

    def selecting(
        self, namespace: str, labels: Mapping[str, str], *, labels_left_out: bool = False
    ) -> tuple[Quota, ...]:
        """The quotas of ``namespace`` that select a pod with ``labels``.

        :param labels_left_out: whether the pod has more labels than ``labels``; then every quota
            that may select the pod counts.
        """
        return tuple(
            quota
            for quota in self._by_namespace.get(namespace, ())
            if (labels_left_out and quota.pod_selector.may_match(labels))
            or (not labels_left_out and quota.pod_selector.matches(labels))
        )

    def chain(self, key: QuotaKey) -> tuple[Quota, ...]:
        """The quota ``key`` and its ancestors, up to the root.

        :raises Detached: naming the first broken link.
        """
        walked = [self._quotas[key]]
        while (link := walked[-1]).parent is not None:
            parent = self._parent(link, link.parent)
            if parent in walked or len(walked) == LONGEST_CHAIN:
                raise Cycle(key, [*(quota.key for quota in walked), parent.key])
            walked.append(parent)
        return tuple(walked)

    def attached(self, key: QuotaKey) -> tuple[Quota, ...]:
        """The quotas that a charge to ``key`` goes to, ``key`` first; never raises Detached.

        A quota stays attached while something is charged to it, also after the labels or
        selectors changed that let it attach.
        """
        walked = [self._quotas[key]]
        while len(walked) < LONGEST_CHAIN:
            parent = self.parent(walked[-1])
            if parent is None or parent in walked:
                break
            walked.append(parent)
        return tuple(walked)

    def parent(self, quota: Quota) -> Quota | None:
        """The parent that is charged for ``quota``: that of the spec, or else ``attached_to``."""
        if quota.parent is None:
            return None
        try:
            return self._parent(quota, quota.parent)
        except Detached:
            return None if quota.attached_to is None else self._quotas.get(quota.attached_to)

    def attachment(self, quota: Quota, *, charged: bool) -> QuotaKey | None:
        """The new ``attached_to`` of ``quota``.

        :param charged: whether something is charged to ``quota``. If not, and the parent does
            not let ``quota`` attach, the result is None.
        """
        parent = self.parent(quota)
        if parent is None or not (charged or self._may_attach(quota)):
            return None
        return parent.key

    def union_of_chains(self, keys: Iterable[QuotaKey]) -> tuple[Quota, ...]:
        """Every quota on the chains of ``keys``, once, each before its ancestors.

        :raises Detached: if one of the chains is broken.
        """
        chains = [self.chain(key) for key in keys]
        union: dict[QuotaKey, Quota] = {}
        for depth in range(LONGEST_CHAIN, 0, -1):  # the leaves are farthest from a root
            for chain in chains:
                if len(chain) >= depth:
                    quota = chain[len(chain) - depth]
                    union[quota.key] = quota
        return tuple(union.values())

    def children(self, key: QuotaKey) -> tuple[Quota, ...]:
        """The quotas directly below ``key``: their charges also go to ``key``."""
        return tuple(
            quota
            for quota in self
            if key in (quota.parent, quota.attached_to)
            and (parent := self.parent(quota)) is not None
            and parent.key == key
        )

    def below(self, keys: Iterable[QuotaKey]) -> set[QuotaKey]:
        """``keys`` and every quota below them, by ``parent`` or ``attached_to``.

        A key may name a quota that does not exist; the quotas that name it as parent count too.
        """
        named: dict[QuotaKey, list[QuotaKey]] = {}
        for quota in self:
            for above in {quota.parent, quota.attached_to}:
                if above is not None:
                    named.setdefault(above, []).append(quota.key)
        found: set[QuotaKey] = set()
        level = set(keys)
        while level:
            found |= level
            level = {key for above in level for key in named.get(above, ())} - found
        return found

    def admits(self, parent: Quota, child: QuotaKey) -> bool:
        """Whether ``parent`` lets quotas of the namespace of ``child`` attach."""
        if parent.key.namespace == child.namespace:
            return True
        labels = self._namespaces.get(child.namespace, {})
        return parent.child_namespaces is not None and parent.child_namespaces.matches(labels)

    def _may_attach(self, quota: Quota) -> bool:
        parent = None if quota.parent is None else self._quotas.get(quota.parent)
        return parent is not None and self.admits(parent, quota.key)

    def _parent(self, quota: Quota, parent: QuotaKey) -> Quota:
        if parent not in self._quotas:
            raise ParentNotFound(quota.key, parent)
        if not self.admits(self._quotas[parent], quota.key):
            raise ForeignParent(quota.key, parent)
        return self._quotas[parent]
