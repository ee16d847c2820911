"""The huge page request of a pod, as kubelet computes it for the pod's cgroup. No I/O.

The rules come from ``resourcehelper.PodRequests`` (k8s.io/component-helpers), which kubelet's
``ResourceConfigForPod`` calls. The package's docstring explains why this module repeats the
product's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

PREFIX = "hugepages-"
_SUFFIXES = {
    **{unit + "i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)},
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", start=1)},
    "m": Decimal("0.001"),
    "": Decimal(1),
}


def parse_bytes(quantity: str | int) -> int:
    """``"64Mi"`` -> ``67108864``. Raises ValueError for a malformed quantity."""
    text = str(quantity)
    number = text.rstrip("KMGTPEikm")
    suffix = text[len(number) :]
    try:
        return int(Decimal(number) * _SUFFIXES[suffix])
    except (KeyError, InvalidOperation) as error:
        raise ValueError(f"{text!r} is not a Kubernetes quantity") from error


def _requests(resources: Mapping[str, Any] | None) -> dict[int, int]:
    """Bytes by page size in bytes. A limit is the default of a request, as in the API server."""
    named = {**((resources or {}).get("limits") or {}), **((resources or {}).get("requests") or {})}
    return {
        parse_bytes(name.removeprefix(PREFIX)): parse_bytes(quantity)
        for name, quantity in named.items()
        if name.startswith(PREFIX)
    }


def _plus(left: Mapping[int, int], right: Mapping[int, int]) -> dict[int, int]:
    return {size: left.get(size, 0) + right.get(size, 0) for size in left.keys() | right.keys()}


def _most(left: Mapping[int, int], right: Mapping[int, int]) -> dict[int, int]:
    return {size: max(left.get(size, 0), right.get(size, 0)) for size in left.keys() | right.keys()}


def huge_page_requests(spec: Mapping[str, Any]) -> dict[int, int]:
    """The bytes that the pod requests, by page size in bytes, only for sizes that the pod names."""
    total: dict[int, int] = {}
    for container in spec.get("containers") or ():
        total = _plus(total, _requests(container.get("resources")))
    sidecars: dict[int, int] = {}
    peak: dict[int, int] = {}
    for container in spec.get("initContainers") or ():
        request = _requests(container.get("resources"))
        if container.get("restartPolicy") == "Always":
            # A sidecar runs beside every container that starts after it.
            total, sidecars = _plus(total, request), _plus(sidecars, request)
            peak = _most(peak, sidecars)
        else:
            peak = _most(peak, _plus(request, sidecars))
    total = _most(total, peak) | _requests(spec.get("resources"))
    return _plus(total, _requests({"requests": spec.get("overhead") or {}}))
