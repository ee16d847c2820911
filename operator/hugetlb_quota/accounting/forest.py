"""The forest that quotas form: who is above whom, and who may be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.selector import Selector

#: A chain longer than this is refused as a cycle would be: every pod's admission
#: writes once per quota on it, and must end within the webhook's time.
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
    """What the forest needs to know of a HugeTLBQuota's spec.

    ``hard``: the limit of each size it limits. ``child_namespaces``: which namespaces
    beside its own may attach children, by their labels; None means no other.
    ``reclaim_after``: how long a pod must be gone before its files are reclaimed; None
    keeps them. ``reparents``: whether what is retained goes to its parent when it is deleted.
    ``uid``: tells it from another of the same name. ``generation``: of the spec.
    ``attached_to``: the parent that its charges went to last; they stay there when that
    parent admits it no more.
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
    """A quota whose chain does not reach a root; ``quota`` is where it breaks."""

    reason = "Detached"

    def __init__(self, quota: QuotaKey, parent: QuotaKey, sentence: str) -> None:
        super().__init__(sentence)
        self.quota = quota
        self.parent = parent


class ParentNotFound(Detached):
    """The parent that a quota names is not there."""

    reason = "ParentNotFound"

    def __init__(self, quota: QuotaKey, parent: QuotaKey) -> None:
        super().__init__(
            quota,
            parent,
            f"HugeTLBQuota {quota} names the parent {parent}, which does not exist;"
            f" create {parent}, or correct spec.parentRef of {quota}.",
        )


class ForeignParent(Detached):
    """The parent does not let this namespace attach."""

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
    """The chain comes back to where it was, or is too long to walk."""

    reason = "Cycle"

    def __init__(self, quota: QuotaKey, path: Iterable[QuotaKey]) -> None:
        walked = tuple(path)
        super().__init__(
            quota,
            walked[-1],
            f"The parents of HugeTLBQuota {quota} lead in a cycle,"
            f" or over more than {LONGEST_CHAIN} levels: {' -> '.join(map(str, walked))};"
            " change spec.parentRef of one of them.",
        )
        self.path = walked


class Forest:
    """Quotas by key, with the labels of the namespaces they are in.

    :param quotas: every quota there is, or at least every one on the chains asked for.
    :param namespaces: labels by namespace; one that is missing has none.
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
        self, namespace: str, labels: Mapping[str, str], *, partial: bool = False
    ) -> tuple[Quota, ...]:
        """The quotas that govern a pod directly: of its namespace, selecting its labels.

        ``partial``: it has more labels, and every quota counts that may select it.
        """
        return tuple(
            quota
            for quota in self._by_namespace.get(namespace, ())
            if (partial and quota.pod_selector.may_match(labels))
            or (not partial and quota.pod_selector.matches(labels))
        )

    def chain(self, key: QuotaKey) -> tuple[Quota, ...]:
        """The quota ``key`` and its ancestors, up to the root.

        :raises Detached: naming the first link that does not hold.
        """
        walked = [self._quotas[key]]
        while (link := walked[-1]).parent is not None:
            parent = self._parent(link, link.parent)
            if parent in walked or len(walked) == LONGEST_CHAIN:
                raise Cycle(key, [*(quota.key for quota in walked), parent.key])
            walked.append(parent)
        return tuple(walked)

    def attached(self, key: QuotaKey) -> tuple[Quota, ...]:
        """The chain as far as charges go up: what a detached quota's use counts against.

        An attachment once made holds while anything is charged through it, whatever became
        of the labels and selectors that it was made by.
        """
        walked = [self._quotas[key]]
        while len(walked) < LONGEST_CHAIN:
            parent = self.parent(walked[-1])
            if parent is None or parent in walked:
                break
            walked.append(parent)
        return tuple(walked)

    def parent(self, quota: Quota) -> Quota | None:
        """Where the charges of ``quota`` go: the parent it names, else the one it had."""
        if quota.parent is None:
            return None
        try:
            return self._parent(quota, quota.parent)
        except Detached:
            return None if quota.attached_to is None else self._quotas.get(quota.attached_to)

    def attachment(self, quota: Quota, *, charged: bool) -> QuotaKey | None:
        """What ``quota`` is to remember as ``attached_to``.

        :param charged: whether anything is charged to it; else a link that does not hold
            any more is forgotten.
        """
        parent = self.parent(quota)
        if parent is None or not (charged or self._may_attach(quota)):
            return None
        return parent.key

    def union_of_chains(self, keys: Iterable[QuotaKey]) -> tuple[Quota, ...]:
        """Every quota on the chains of ``keys``, once, each before its ancestors.

        :raises Detached: when one of the chains does not hold.
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
        """The quotas whose charges go to ``key``."""
        return tuple(
            quota
            for quota in self
            if key in (quota.parent, quota.attached_to)
            and (parent := self.parent(quota)) is not None
            and parent.key == key
        )

    def below(self, keys: Iterable[QuotaKey]) -> set[QuotaKey]:
        """``keys`` and every quota that has one of them on its chain, or would have it there.

        One of ``keys`` may be of no quota: those that name it as their parent count too.
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
        """Whether ``parent`` lets quotas of the child's namespace attach."""
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
