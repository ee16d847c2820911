"""A forest of three levels, and concurrent users who create and change pods and quotas."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from tests.chaos.client import Answer, Client, connect
from tests.chaos.observer import FINISHED, PAGES, Key, Ledger, Pod
from tests.kube.api import Object
from tests.kube.control_plane import ControlPlane
from tests.kube.quotas import quota_object
from tests.waiting import eventually

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
ROOT, MIDDLE = "chaos-root", "chaos-middle"
LEAVES = ("chaos-a", "chaos-b")
TEAMS = ("x", "y", "z")
"""x and y have their own quotas; only the quota "all" selects the pods of z."""
LIMITS = {1: (64, 96), 2: (40, 64), 3: (16, 40)}
"""The smallest and the largest limit of each level, in MiB; children can exceed their parent."""
USERS = 12
REQUEST_TIMEOUT = 12.0
"""In seconds; after this time a user sends another request."""
DELETED_AT_ONCE = 0.15
"""The share of deletions with grace period 0."""
WISHES = {"create": 45, "delete": 24, "relabel": 14, "finish": 5, "limit": 3, "move": 2}


def make_forest(plane: ControlPlane) -> dict[Key, int]:
    """Make the quotas, wait until they are counted, and return their levels."""
    levels = {(ROOT, "one"): 1, (ROOT, "two"): 1}
    for namespace in (ROOT, MIDDLE, *LEAVES):
        plane.create_namespace(namespace)
    for key in levels:
        plane.api.create(QUOTAS, quota(key, 1, None, {"none": "at-all"}))
    for place, name in enumerate(("p", "q", "r")):
        key = (MIDDLE, name)
        plane.api.create(
            QUOTAS, quota(key, 2, (ROOT, ("one", "two")[place % 2]), {"none": "at-all"})
        )
        levels[key] = 2
    for place, namespace in enumerate(LEAVES):
        for name, labels in (("x", {"team": "x"}), ("y", {"team": "y"}), ("all", {})):
            key = (namespace, name)
            parent = (MIDDLE, "pqr"[(place + len(name)) % 3])
            plane.api.create(QUOTAS, quota(key, 3, parent, labels))
            levels[key] = 3
    eventually(
        lambda: all(
            "observedGeneration" in each.get("status", {}) for each in plane.api.list(QUOTAS)
        )
    )
    return levels


def quota(key: Key, level: int, parent: Key | None, labels: dict[str, str]) -> Object:
    """A quota with the largest limit of its level."""
    spec: Object = {
        "hard": {PAGES: f"{LIMITS[level][1]}Mi"},
        "podSelector": {"matchLabels": labels},
        "childNamespaces": {},
    }
    if parent is not None:
        spec["parentRef"] = {"namespace": parent[0], "name": parent[1]}
    return quota_object(key[0], key[1], spec)


def pod(name: str, team: str, mib: int) -> Object:
    """A pod that only the simulated scheduler may bind."""
    resources = {PAGES: f"{mib}Mi", "cpu": "1m", "memory": "1Mi"}
    container = {
        "name": "main",
        "image": "none",
        "resources": {"requests": resources, "limits": resources},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"team": team}},
        "spec": {"containers": [container], "schedulerName": "nobody"},
    }


class Load:
    """Users who send random requests by a seed.

    `outcomes` counts requests by (wish, outcome). `examples`: the last answer of each.
    """

    def __init__(
        self, plane: ControlPlane, levels: dict[Key, int], ledger: Ledger, seed: int
    ) -> None:
        self._plane = plane
        self._levels = levels
        self._ledger = ledger
        self._seed = seed
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.examples: dict[tuple[str, str], str] = {}

    async def run(self) -> None:
        """Send requests until the task is cancelled."""
        async with connect(self._plane, USERS, REQUEST_TIMEOUT) as client:
            await asyncio.gather(*(self._use(client, number) for number in range(USERS)))

    async def _use(self, client: Client, number: int) -> None:
        chance = random.Random(f"{self._seed} user {number}")
        count = 0
        while True:
            (wish,) = chance.choices(list(WISHES), list(WISHES.values()))
            count += 1
            request = self._request(wish, chance, f"u{number}-{count}")
            if request is None:
                await asyncio.sleep(0.01)
                continue
            answer = await client.send(*request)
            outcome = outcome_of(answer)
            self.outcomes[wish, outcome] += 1
            self.examples[wish, outcome] = answer.text
            if outcome == "no answer":
                await asyncio.sleep(chance.uniform(0.05, 0.2))

    def _request(self, wish: str, chance: random.Random, name: str) -> tuple[str, str, Any] | None:
        """Method, path and body of a request; None if the wish needs a pod and no pod exists."""
        if wish == "create":
            body = pod(name, chance.choice(TEAMS), chance.choice((2, 2, 4, 6, 8, 16)))
            return "POST", f"/api/v1/namespaces/{chance.choice(LEAVES)}/pods", body
        if wish in ("limit", "move"):
            return self._change_quota(wish, chance)
        # The pages of a finished pod move with its labels, and admission does not require room.
        pods = [pod for pod in self._ledger.pods.values() if wish == "delete" or not pod.finished]
        if not pods:
            return None
        chosen: Pod = chance.choice(pods)
        path = f"/api/v1/namespaces/{chosen.namespace}/pods/{chosen.name}"
        if wish == "delete":
            # Without grace the pod leaves the API before kubelet has ended it.
            now = chance.random() < DELETED_AT_ONCE
            return "DELETE", path, {"gracePeriodSeconds": 0} if now else None
        if wish == "finish":
            phase = chance.choice(FINISHED)
            return "PATCH", f"{path}/status", {"status": {"phase": phase}}
        team = chance.choice(TEAMS)
        return (
            "PATCH",
            path,
            [
                {"op": "test", "path": "/status/phase", "value": chosen.phase},
                {"op": "replace", "path": "/metadata/labels/team", "value": team},
            ],
        )

    def _change_quota(self, wish: str, chance: random.Random) -> tuple[str, str, Any]:
        level = chance.choice((2, 3) if wish == "move" else (1, 2, 3))
        chosen = chance.choice([key for key, at in self._levels.items() if at == level])
        path = "/apis/hugetlb.dev/v1alpha1/namespaces/{}/hugetlbquotas/{}".format(*chosen)
        spec: Object = {
            "hard": {PAGES: f"{2 * chance.randint(*(n // 2 for n in LIMITS[level]))}Mi"}
        }
        if wish == "move":
            above = chance.choice([key for key, at in self._levels.items() if at == level - 1])
            spec = {"parentRef": {"namespace": above[0], "name": above[1]}}
        return "PATCH", path, {"spec": spec}


def outcome_of(answer: Answer) -> str:
    """How a user's request ended."""
    if not answer.status:
        return "no answer"
    if answer.done:
        return "done"
    if answer.status >= 500 or "failed calling webhook" in answer.text:
        return "unavailable"
    refused = "hugetlb.dev" in answer.text and "denied the request" in answer.text
    return "refused" if refused else "failed"
