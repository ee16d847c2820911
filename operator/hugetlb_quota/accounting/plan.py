"""The plan: what every limit file of a pod's cgroups must say.

``rsvd.max`` refuses in mmap(2), with ENOMEM; ``max`` refuses at the touch, with SIGBUS.
Both get the same value, so that a program always meets the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.page_size import PageSize

Limit = Literal["rsvd.max", "max"]

#: What the files of one cgroup must say, in bytes; None is the kernel's "max". A file
#: that is not named is left alone.
Limits = Mapping[tuple[PageSize, Limit], int | None]

_BOTH: Final[tuple[Limit, Limit]] = ("rsvd.max", "max")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a pod that asks for huge pages may use.

    ``demand``: the pod as a whole. ``containers``: the own request of each container
    that has an ID by now. ``pod_level``: sizes that the pod names for all of its
    containers together (spec.resources), so that each may use all of it.
    """

    demand: Charge = NOTHING
    containers: Mapping[str, Charge] = field(default_factory=dict)
    pod_level: frozenset[PageSize] = frozenset()


def plan(
    allowance: Allowance | None,
    container: str | None,
    found: Limits,
    sizes: Iterable[PageSize],
    *,
    mirror: bool,
) -> Limits:
    """What the files of one cgroup of a pod must say.

    :param allowance: of a pod that asks for huge pages; None for one that asks for none, or
        that is not known yet.
    :param container: the ID of the container whose cgroup it is; None: the pod's own.
    :param found: what the files say now.
    :param sizes: of the machine; a pod with an allowance gets 0 of each it does not ask for.
    :param mirror: whether a pod without allowance gets kubelet's own ``max`` as its
        ``rsvd.max`` too: the same limit, met at mmap(2) and not at the touch.
    """
    if allowance is None:
        return _mirrored(found) if mirror else {}
    if container is None:
        return _limited(allowance.demand, sizes)
    own = allowance.containers.get(container)
    if own is None:
        return {}  # not known yet, or the sandbox: the pod's limit holds it
    shared = {size: allowance.demand.of(size) for size in allowance.pod_level}
    return _limited(Charge({**shared, **own}), sizes)


def _limited(amounts: Charge, sizes: Iterable[PageSize]) -> Limits:
    return {
        (size, limit): _as_the_kernel_keeps(amounts.of(size), size)
        for size in sizes
        for limit in _BOTH
    }


def _mirrored(found: Limits) -> Limits:
    return {(size, "rsvd.max"): value for (size, limit), value in found.items() if limit == "max"}


def _as_the_kernel_keeps(amount: int, size: PageSize) -> int | None:
    # hugetlb_cgroup_write() rounds down to whole pages, and the largest number of
    # pages reads back as "max": any other value would look like drift for ever.
    whole = amount // size.bytes * size.bytes
    return whole if whole < 2**63 - size.bytes else None


def admissible(wanted: int | None, use: int) -> int | None:
    """The value to write for ``wanted`` while ``use`` bytes are in use.

    The kernel refuses a limit below use (EBUSY), so the limit is what is in use and
    follows it down: nothing more is given, and nothing is taken away.
    """
    return None if wanted is None else max(wanted, use)
