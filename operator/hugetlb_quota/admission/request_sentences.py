"""Sentences that refuse a request, about a pod or a quota, that could not be decided."""

from __future__ import annotations

from hugetlb_quota.admission.wording import bounded
from hugetlb_quota.plural import number_of


def overloaded(what: str, waiting: int, seconds: float) -> str:
    """The request would wait too long behind other requests for the same quotas."""
    wait = "waits" if waiting == 1 else "wait"
    return (
        f"{what} is refused because {number_of(waiting, 'request')} already {wait} for the same"
        f" quotas, which takes about {seconds:.1f} s, longer than the API server waits. Try again"
        " in a moment."
    )


def too_many_requests(what: str, most: int) -> str:
    """The replica already decides as many requests as it may."""
    return (
        f"{what} is refused because this replica of admission is deciding {most} other requests,"
        " as many as it decides at the same time. Try again in a moment."
    )


def time_short(what: str, seconds: float) -> str:
    """The decision took too long."""
    return (
        f"{what} is refused because its quotas could not be read and written within"
        f" {seconds:.1f} s; the API server may be busy. Try again; nothing stays charged for this"
        " request."
    )


def unreachable(what: str, why: object) -> str:
    """The API server failed to answer a read or a write."""
    return bounded(
        f"{what} is refused because its quotas could not be read or written: {why} Try again."
    )


def unexpected(what: str, error: BaseException) -> str:
    """The decision failed because of a bug."""
    return (
        f"{what} is refused because of an error in hugetlb-quota ({type(error).__name__});"
        " the log of admission has the details."
    )
