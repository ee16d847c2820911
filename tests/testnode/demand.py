"""What a pod asks for in huge pages, as kubelet counts it for the pod's cgroup. No I/O.

After ``resourcehelper.PodRequests`` (k8s.io/component-helpers), which is also what kubelet's
``ResourceConfigForPod`` calls. Written a second time on purpose: see this package's docstring.
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
    """``"64Mi"`` -> ``67108864``. Raises ValueError for what is no Kubernetes quantity."""
    text = str(quantity)
    number = text.rstrip("KMGTPEikm")
    suffix = text[len(number) :]
    try:
        return int(Decimal(number) * _SUFFIXES[suffix])
    except (KeyError, InvalidOperation) as error:
        raise ValueError(f"{text!r} is no Kubernetes quantity") from error


def _requests(resources: Mapping[str, Any] | None) -> dict[int, int]:
    """Bytes by page size in bytes; for pods no API server saw, limits count as requests."""
    asked = {**((resources or {}).get("limits") or {}), **((resources or {}).get("requests") or {})}
    return {
        parse_bytes(name.removeprefix(PREFIX)): parse_bytes(quantity)
        for name, quantity in asked.items()
        if name.startswith(PREFIX)
    }


def _plus(left: Mapping[int, int], right: Mapping[int, int]) -> dict[int, int]:
    return {size: left.get(size, 0) + right.get(size, 0) for size in left.keys() | right.keys()}


def _most(left: Mapping[int, int], right: Mapping[int, int]) -> dict[int, int]:
    return {size: max(left.get(size, 0), right.get(size, 0)) for size in left.keys() | right.keys()}


def huge_page_requests(spec: Mapping[str, Any]) -> dict[int, int]:
    """Bytes the pod asks for, by page size in bytes; sizes it never names are absent."""
    total: dict[int, int] = {}
    for container in spec.get("containers") or ():
        total = _plus(total, _requests(container.get("resources")))
    sidecars: dict[int, int] = {}
    peak: dict[int, int] = {}
    for container in spec.get("initContainers") or ():
        asked = _requests(container.get("resources"))
        if container.get("restartPolicy") == "Always":
            # A sidecar runs on beside everything that starts after it.
            total, sidecars = _plus(total, asked), _plus(sidecars, asked)
            peak = _most(peak, sidecars)
        else:
            peak = _most(peak, _plus(asked, sidecars))
    total = _most(total, peak) | _requests(spec.get("resources"))
    return _plus(total, _requests({"requests": spec.get("overhead") or {}}))
