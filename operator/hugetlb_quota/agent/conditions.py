"""The conditions of a HugeTLBNode: Ready, ChargeListReadable, MountsHaveRoom, ReportComplete. Pure.

In each function ``before`` is the condition as it was, empty if there was none, and ``now`` is the
current time as text. A condition keeps the time of its last transition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from hugetlb_quota import quantity
from hugetlb_quota.api.model import transition_time
from hugetlb_quota.api.node import LeftOut, MountStatus
from hugetlb_quota.plural import number_of

Json = dict[str, Any]

#: The most sentences in a message; the message counts the others.
_NAMED: Final = 5
#: The most characters in a message. The API refuses a report with a message above 32768.
_LONGEST: Final = 8192


def ready_condition(
    problems: tuple[str, ...], before: Mapping[str, Any], now: str, notes: tuple[str, ...] = ()
) -> Json:
    """Return the condition Ready: False if there are problems.

    :param problems: a sentence for each problem.
    :param notes: sentences to add if there is no problem.
    """
    fine = " ".join(("The limits of all pods are in place.", *notes))
    return _condition("Ready", ("Enforced", "NotEnforced"), fine, problems, before, now)


def unusable_condition(reason: str, message: str, before: Mapping[str, Any], now: str) -> Json:
    """Return the condition Ready of a node on which pods can't be limited.

    :param reason: a word for what the host lacks.
    :param message: a sentence for what the host lacks.
    """
    problem = f"No pod of this node is limited: {message}"
    return _condition("Ready", ("Enforced", reason), "", (problem,), before, now)


def charge_list_condition(unreadable: str, before: Mapping[str, Any], now: str) -> Json:
    """Return the condition ChargeListReadable: False if the charges of gone pods may be wrong.

    :param unreadable: why the kernel's charge list can't be read; "" if it can.
    """
    problem = (
        f"{unreadable} The charges of gone pods are the last values of their cgroups' counters,"
        " which may be too large; the report has no files."
    )
    fine = "The charges come from the kernel's charge list."
    problems = (problem,) if unreadable else ()
    return _condition("ChargeListReadable", ("Read", "Unreadable"), fine, problems, before, now)


def room_condition(mounts: Iterable[MountStatus], before: Mapping[str, Any], now: str) -> Json:
    """Return the condition MountsHaveRoom: False if a mount is full up to its own limit.

    A program can't tell such a limit from a quota: mmap fails with ENOMEM beyond ``size=`` as
    beyond a quota. Only fallocate fails with ENOSPC (fs/hugetlbfs/inode.c).
    """
    full = tuple(
        f"{mount.path} is full: it holds {mount.used} and was mounted with"
        f" size={mount.limit}. Errors there (ENOSPC in fallocate, ENOMEM in mmap) come from this"
        " limit and not from a quota; truncate files there, or remount with a larger size."
        for mount in mounts
        if mount.limit is not None
        and quantity.parse_sum(mount.used) >= quantity.parse_sum(mount.limit)
    )
    fine = "No hugetlbfs is used up to its own limit (size=)."
    return _condition("MountsHaveRoom", ("HaveRoom", "Full"), fine, full, before, now)


def complete_condition(left_out: LeftOut, before: Mapping[str, Any], now: str) -> Json:
    """Return the condition ReportComplete: False if the report had no room for something."""
    parts = []
    if left_out.files:
        parts.append(f"{number_of(left_out.files, 'file')} (still charged)")
    if left_out.labels:
        parts.append(
            f"the longest labels of {number_of(left_out.labels, 'pod')} (every quota that may"
            " select such a pod pays for the pod)"
        )
    if left_out.pods:
        parts.append(
            f"{number_of(left_out.pods, 'pod')} (the demand stays charged until the report has room"
            " for all pods, and so does the demand of pods that end meanwhile)"
        )
    problem = (
        f"The report has reached its largest size. Left out: {'; '.join(parts)}. Remove files"
        " that gone pods left, so that the report has fewer pods."
    )
    fine = "The report has all pods and the largest files."
    problems = (problem,) if parts else ()
    return _condition("ReportComplete", ("Complete", "TooLarge"), fine, problems, before, now)


def _condition(
    kind: str,
    reasons: tuple[str, str],
    fine: str,
    problems: tuple[str, ...],
    before: Mapping[str, Any],
    now: str,
) -> Json:
    """Return a condition; ``reasons`` are the reasons for True and for False."""
    status = "False" if problems else "True"
    more = len(problems) - _NAMED
    message = " ".join(problems[:_NAMED]) + (f" And {more} more." if more > 0 else "")
    return {
        "type": kind,
        "status": status,
        "reason": reasons[bool(problems)],
        # A path in the message may have any bytes, and may be long.
        "message": (message or fine).encode(errors="backslashreplace").decode()[:_LONGEST],
        "lastTransitionTime": transition_time(
            status,
            now,
            before=before.get("status"),
            changed_at=before.get("lastTransitionTime"),
        ),
    }
