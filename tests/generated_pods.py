"""Random pods that request huge pages in every way that the API allows."""

from __future__ import annotations

import random
from typing import Any

Json = dict[str, Any]

PAGES = {"hugepages-2Mi": 2 * 1024**2, "hugepages-1Gi": 1024**3}


def pod_spec(draw: random.Random, sizes: tuple[str, ...] = tuple(PAGES), most: int = 8) -> Json:
    """A random pod spec that the API server accepts.

    :param sizes: the page sizes that the pod may request.
    :param most: the largest request of one container, in pages of one size.
    """
    containers = [_container(draw, f"c{i}", sizes, most) for i in range(draw.randint(1, 3))]
    starting = [_container(draw, f"i{i}", sizes, most) for i in range(draw.randint(0, 4))]
    for container in starting:
        if draw.random() < 0.4:
            container["restartPolicy"] = "Always"
    spec: Json = {"containers": containers, "initContainers": starting}
    if draw.random() < 0.3:
        # The pod-level request must be at least the largest sum of its containers.
        ceiling = most * (len(containers) + len(starting))
        chosen = draw.sample(sizes, draw.randint(0, len(sizes)))
        whole = {size: _amount(draw, size, ceiling + draw.randint(0, 4)) for size in chosen}
        spec["resources"] = _resources(whole, cpu="1", memory="16Gi")
    return spec


def with_overhead(draw: random.Random, spec: Json) -> Json:
    """The spec with a random overhead; the API server sets it only from a RuntimeClass."""
    if draw.random() < 0.3:
        spec["overhead"] = {size: _amount(draw, size, draw.randint(0, 3)) for size in PAGES}
    return spec


def _container(draw: random.Random, name: str, sizes: tuple[str, ...], most: int) -> Json:
    chosen = draw.sample(sizes, draw.randint(0, len(sizes)))
    amounts = {size: _amount(draw, size, draw.randint(0, most)) for size in chosen}
    return {"name": name, "image": "none", "resources": _resources(amounts)}


def _resources(amounts: Json, cpu: str = "1m", memory: str = "512Mi") -> Json:
    # Core validation: limits and requests of huge pages are equal, and a pod with huge pages
    # also requests cpu or memory.
    with_memory = {**amounts, "memory": memory, "cpu": cpu}
    return {"requests": dict(with_memory), "limits": dict(with_memory)}


def _amount(draw: random.Random, size: str, pages: int) -> str:
    amount = pages * PAGES[size]
    return draw.choice(
        [str(amount), f"{amount // 1024}Ki", f"{amount // 1024**2}Mi", f"{amount}000m"]
    )
