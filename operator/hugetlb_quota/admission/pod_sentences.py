"""Sentences that refuse a pod."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from hugetlb_quota.accounting.counter import Counter, Shortfall
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.accounting.reservation import LARGEST_RESERVATIONS
from hugetlb_quota.admission.wording import (
    CHECK_CONTROLLER,
    MOST_DETAILED,
    bounded,
    names,
    no_room,
    retained_files,
)
from hugetlb_quota.quantity import render


def over_quota(
    pod: str,
    shortfalls: Sequence[Shortfall],
    files: Mapping[QuotaKey, Sequence[RetainedFile]] | None = None,
    silent: Mapping[QuotaKey, str] | None = None,
) -> str:
    """The pod does not fit: every quota that refuses the pod, size by size.

    :param files: the largest retained files, by quota.
    :param silent: by quota, a sentence about the charges that wait for a node's report.
    """
    by_size = sorted(shortfalls, key=lambda each: each.size)  # stable: leaf to root for each size
    asks = []
    for size, group in groupby(by_size, key=lambda each: each.size):
        refusing = list(group)
        reasons = ", and ".join(no_room(each) for each in refusing[:MOST_DETAILED])
        if others := refusing[MOST_DETAILED:]:
            reasons += f"; there is no room in {names(each.quota for each in others)} either"
        asks.append(f"{render(refusing[0].requested)} of {size.resource}, but {reasons}")
    quotas = list(dict.fromkeys(each.quota for each in shortfalls))
    limits = "its limit" if len(quotas) == 1 else "their limits"
    advice, facts = "", ""
    if any(each.retained for each in shortfalls):
        advice = " truncate or remove files of pods that are gone,"
        if retained := [file for quota in quotas for file in (files or {}).get(quota, ())]:
            facts = f" Retained in {retained_files(retained)}."
    for sentence in dict.fromkeys((silent or {}).get(quota, "") for quota in quotas):
        facts += f" {sentence}" if sentence else ""
    return bounded(
        f"pod {pod} asks for {'; and for '.join(asks)}."
        f"{facts} Ask for less,{advice} stop pods that use huge pages under {names(quotas)},"
        f" or have {limits} raised."
    )


def detached(pod: str, why: object) -> str:
    """A chain of the pod's quotas does not reach a root."""
    return bounded(
        f"pod {pod} asks for huge pages, but its quotas can't be charged up to the root: {why}"
    )


def terminating(pod: str, quota: QuotaKey) -> str:
    """A quota of the pod is being deleted."""
    return (
        f"pod {pod} asks for huge pages, but HugeTLBQuota {quota} is being deleted and takes no"
        f" more pods; wait until {quota} is gone, or create the pod under another quota."
    )


def uncounted(pod: str, quotas: Iterable[QuotaKey]) -> str:
    """The controller has not counted a quota of the pod yet, or the quota's status is invalid."""
    return bounded(
        f"pod {pod} asks for huge pages, but the controller has not yet counted the pods under"
        f" HugeTLBQuota {names(quotas)} since the quota was created or changed, or the quota's"
        f" status could not be read. Try again in a moment; {CHECK_CONTROLLER}"
    )


def too_many_reservations(pod: str, counter: Counter) -> str:
    """The object of a quota has no room for another reservation, although its limit may."""
    count = len(counter.reservations)
    return (
        f"pod {pod} asks for huge pages, but HugeTLBQuota {counter.quota} holds {count}"
        f" reservations for pods being created, as many as fit ({LARGEST_RESERVATIONS} bytes; etcd"
        " stores no object above 1.5 MiB). A reservation ends when its pod is counted, or about a"
        " minute after its pod was refused. Try again in a minute, create pods more slowly, or"
        f" divide the quota's pods between several quotas; {CHECK_CONTROLLER}"
    )


def invalid_quota(pod: str, why: object) -> str:
    """A quota of the namespace, or on a chain of the pod, is invalid."""
    return bounded(
        f"pod {pod} asks for huge pages, but a quota that may govern the pod can't be read: {why}"
        " Correct its spec."
    )


def malformed_demand(pod: str, why: object) -> str:
    """A resource request of the pod is invalid."""
    return bounded(f"pod {pod} is refused: {why}")


def forged_mirror(pod: str, annotation: str) -> str:
    """A user other than a kubelet creates a mirror pod."""
    return (
        f"pod {pod} has the annotation {annotation}, which only a kubelet may set, on a pod that"
        " shows a static pod; leave the annotation out."
    )


def no_uid(pod: str) -> str:
    """The pod has no UID, and a reservation needs the UID."""
    return (
        f"pod {pod} asks for huge pages, but the API server sent no UID for the pod,"
        " so its pages can't be reserved; Kubernetes 1.30 or later is needed."
    )


def ungoverned(pod: str, namespace: str) -> str:
    """No quota selects the pod, and quotas are required."""
    return bounded(
        f"pod {pod} asks for huge pages, but no HugeTLBQuota of namespace {namespace} selects the"
        " pod, and this cluster gives huge pages only under a quota (requireQuota). Give the pod"
        f" labels that a HugeTLBQuota of {namespace} selects, or ask an administrator for a quota"
        " there."
    )
