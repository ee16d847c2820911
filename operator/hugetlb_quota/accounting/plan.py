"""The plan: the value of every limit file of a pod's cgroups.

``rsvd.max`` makes mmap(2) return ENOMEM; ``max`` kills with SIGBUS at the touch of a page.
Both files get the same value, so that a program always meets ``rsvd.max`` first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.page_size import PageSize

Limit = Literal["rsvd.max", "max"]

#: The limit files of one cgroup and their values, in bytes; None is the kernel's "max". The
#: agent does not write a file that is not named.
Limits = Mapping[tuple[PageSize, Limit], int | None]

_BOTH: Final[tuple[Limit, Limit]] = ("rsvd.max", "max")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a pod of the API may use.

    ``demand``: the limit of the whole pod. ``containers``: the request of each container that
    has an ID, by ID. ``pod_level``: the sizes named in ``spec.resources``; each container may
    use all of the pod's demand of these sizes.
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
    """The values of the limit files of one cgroup of a pod.

    :param allowance: None for a pod that the agent has not seen in the API yet.
    :param container: the ID of the cgroup's container; None for the pod's own cgroup.
    :param found: the current values of the files.
    :param sizes: the page sizes of the node; a size that the pod does not request gets 0.
    :param mirror: whether a pod without allowance gets kubelet's ``max`` as ``rsvd.max`` too, so
        that mmap(2) fails instead of the touch.
    """
    if allowance is None:
        return _mirrored(found) if mirror else {}
    if container is None:
        return _limited(allowance.demand, sizes)
    own = allowance.containers.get(container)
    if own is None:
        return {}  # a new container or the sandbox: the limit of the pod's cgroup applies
    shared = {size: allowance.demand.of(size) for size in allowance.pod_level}
    return _limited(Charge({**shared, **own}), sizes)


def _limited(amounts: Charge, sizes: Iterable[PageSize]) -> Limits:
    return {
        (size, limit): _kernel_value(amounts.of(size), size) for size in sizes for limit in _BOTH
    }


def _mirrored(found: Limits) -> Limits:
    return {(size, "rsvd.max"): value for (size, limit), value in found.items() if limit == "max"}


def _kernel_value(amount: int, size: PageSize) -> int | None:
    # The value that the kernel returns after a write of ``amount``; any other value would
    # always look like drift. hugetlb_cgroup_write() rounds down to whole pages, and the largest
    # number of pages reads back as "max".
    whole = amount // size.bytes * size.bytes
    return whole if whole < 2**63 - size.bytes else None


def admissible(wanted: int | None, use: int) -> int | None:
    """The value to write for ``wanted`` while ``use`` bytes are in use.

    The kernel refuses a limit below the use (EBUSY). Then the limit is the use, and falls with
    the use: the pod gets nothing more, and loses nothing.
    """
    return None if wanted is None else max(wanted, use)
