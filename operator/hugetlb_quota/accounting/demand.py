"""Demand: the effective huge page request of a pod, as the scheduler computes it.

The rules are those of ``PodRequests`` and ``AggregateContainerRequests`` in
k8s.io/component-helpers/resource/helpers.go; a differential test runs that code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hugetlb_quota.accounting.charge import NOTHING, Charge


class MalformedDemand(ValueError):
    """A pod with a huge page request that can't be counted."""

    def __init__(self, where: str, why: object) -> None:
        super().__init__(f"The huge page request of {where} can't be counted: {why}")
        self.where = where


def demand(spec: Mapping[str, Any]) -> Charge:
    """The effective huge page request of a pod with this ``spec`` (raw JSON).

    In steady state all containers and sidecars run together. An init container runs beside the
    sidecars that started before it. The demand is the maximum of the two sums, or the amount in
    ``spec.resources`` for the sizes named there, plus ``spec.overhead``. Ephemeral containers
    can't request huge pages.

    :raises MalformedDemand: for an amount that is malformed, negative, or beyond
        2^63 - 1 bytes, alone or in sum.
    """
    steady = Charge.total(
        _requests(container, f"container {container.get('name')!r}")
        for container in spec.get("containers") or ()
    )
    sidecars, starting = NOTHING, NOTHING
    for container in spec.get("initContainers") or ():
        request = _requests(container, f"init container {container.get('name')!r}")
        if container.get("restartPolicy") == "Always":
            sidecars += request
            starting = starting.peak(sidecars)
        else:
            starting = starting.peak(request + sidecars)
    aggregate = (steady + sidecars).peak(starting)
    whole_pod = _requests(spec, "the pod as a whole (spec.resources)")
    overhead = _amounts(spec.get("overhead"), "the RuntimeClass (spec.overhead)")
    return _bounded(Charge({**aggregate, **whole_pod}) + overhead, "the pod").without_zeros()


def _requests(holder: Mapping[str, Any], where: str) -> Charge:
    return _amounts((holder.get("resources") or {}).get("requests"), where)


def _amounts(resources: Mapping[str, Any] | None, where: str) -> Charge:
    try:
        charge = Charge.from_resources(resources)
    except ValueError as error:
        raise MalformedDemand(where, error) from error
    return _bounded(charge, where)


def _bounded(charge: Charge, where: str) -> Charge:
    for size, amount in charge.items():
        if amount < 0:
            raise MalformedDemand(where, f"{size.resource} is negative ({amount}).")
        if amount >= 2**63:
            raise MalformedDemand(where, f"{size.resource} sums up to more than 2^63 - 1 bytes.")
    return charge
