"""The conditions of a HugeTLBNode: Ready, ChargeListReadable, MountsHaveRoom, ReportComplete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from hugetlb_quota import quantity
from hugetlb_quota.api.node import LeftOut, MountStatus

Json = dict[str, Any]

#: Sentences in a message; the others are counted.
_NAMED: Final = 5
#: Characters of a message: the API refuses one above 32768, and with it the whole report.
_LONGEST: Final = 8192


def ready_condition(
    problems: tuple[str, ...], before: Mapping[str, Any], now: str, notes: tuple[str, ...] = ()
) -> Json:
    """The condition Ready, which keeps the time of its last transition.

    :param before: the condition as it was; empty when there was none.
    :param notes: sentences that are told where there is no problem.
    """
    fine = " ".join(("The limits of all pods are in place.", *notes))
    return _condition("Ready", ("Enforced", "NotEnforced"), fine, problems, before, now)


def unusable_condition(reason: str, message: str, before: Mapping[str, Any], now: str) -> Json:
    """The condition Ready of a node whose pods can't be limited, for what the host lacks."""
    told = f"No pod of this node is limited: {message}"
    return _condition("Ready", ("Enforced", reason), "", (told,), before, now)


def charge_list_condition(unreadable: str, before: Mapping[str, Any], now: str) -> Json:
    """The condition ChargeListReadable: whether what gone pods hold is the kernel's own word.

    :param unreadable: why it is not; "" when it is.
    """
    told = (
        f"{unreadable} What pods left that are gone is told by what their cgroups counted last,"
        " and may be too much; files are not told at all."
    )
    fine = "What is charged is what the kernel's own list has."
    problems = (told,) if unreadable else ()
    return _condition("ChargeListReadable", ("Read", "Unreadable"), fine, problems, before, now)


def room_condition(mounts: Iterable[MountStatus], before: Mapping[str, Any], now: str) -> Json:
    """The condition MountsHaveRoom: whether a failure on a mount may be its own limit's.

    The two look alike to a program: beyond ``size=`` mmap fails with ENOMEM as beyond a
    quota, and only fallocate with ENOSPC (fs/hugetlbfs/inode.c).
    """
    full = tuple(
        f"{mount.path} is full: it holds {mount.used} and was mounted with"
        f" size={mount.limit}. What fails there (ENOSPC in fallocate, ENOMEM in mmap) fails on"
        " that and on no quota; truncate files there, or remount it with a larger size."
        for mount in mounts
        if mount.limit is not None
        and quantity.parse_sum(mount.used) >= quantity.parse_sum(mount.limit)
    )
    fine = "No hugetlbfs is used up to its own limit (size=)."
    return _condition("MountsHaveRoom", ("HaveRoom", "Full"), fine, full, before, now)


def complete_condition(left_out: LeftOut, before: Mapping[str, Any], now: str) -> Json:
    """The condition ReportComplete: whether all that there is to tell has room in the report."""
    parts = [
        f"{count} {what}"
        for count, what in (
            (left_out.files, "files, which are charged all the same"),
            (
                left_out.labels,
                "pods' longest labels: every quota that may select such a pod is charged for it",
            ),
            (
                left_out.pods,
                "pods: until they are told of, and for pods that end meanwhile, what they asked"
                " for stays charged",
            ),
        )
        if count
    ]
    told = (
        f"The report has reached its largest size. Left out are {'; '.join(parts)}. Remove files"
        " that gone pods left, so that there are fewer pods to tell of."
    )
    fine = "All pods and the largest files are told."
    problems = (told,) if parts else ()
    return _condition("ReportComplete", ("Complete", "TooLarge"), fine, problems, before, now)


def _condition(
    kind: str,
    reasons: tuple[str, str],
    fine: str,
    problems: tuple[str, ...],
    before: Mapping[str, Any],
    now: str,
) -> Json:
    status = "False" if problems else "True"
    more = len(problems) - _NAMED
    message = " ".join(problems[:_NAMED]) + (f" And {more} more." if more > 0 else "")
    return {
        "type": kind,
        "status": status,
        "reason": reasons[bool(problems)],
        # A path in it may have any bytes, and be long.
        "message": (message or fine).encode(errors="backslashreplace").decode()[:_LONGEST],
        "lastTransitionTime": before.get("lastTransitionTime", now)
        if before.get("status") == status
        else now,
    }
