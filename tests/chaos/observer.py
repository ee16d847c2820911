"""Reads every revision of every quota and pod from etcd, and checks the limits at each revision.

The observer watches etcd and not the API server: etcd has all revisions in one order, and a kill
of the API server loses no revision. The API server must store JSON
(`--storage-media-type=application/json`) and must not compact (`--etcd-compaction-interval=0`).
A pod that has ended uses the bytes that the kernel of its node still holds; `tests.chaos.nodes`
simulates these kernels. This module uses no code of the product.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.kube.reservations import pending

QUOTAS = "/registry/hugetlb.dev/hugetlbquotas/"
PODS = "/registry/pods/"
LEASE = "/registry/leases/hugetlb-system/hugetlb-quota-controller"
PAGES = "hugepages-2Mi"
BREACHES_KEPT = 10
HISTORY_KEPT = 30
FINISHED = ("Succeeded", "Failed")

_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True)
class Pod:
    """A pod at its last revision."""

    namespace: str
    name: str
    uid: str
    team: str
    pages: int
    """In bytes."""
    phase: str = "Pending"
    node: str = ""
    """Empty if the pod is not bound."""
    leaving: bool = False
    """Whether the pod is being deleted, and waits for its kubelet."""

    @property
    def finished(self) -> bool:
        """Whether all containers of the pod have ended."""
        return self.phase in FINISHED


@dataclass
class Quota:
    """A quota at its last revision; amounts in bytes.

    `cap`: the most that pods may use: the limit. If a user lowered the limit below the charge, the
    cap is the smallest charge since then.
    """

    hard: int
    team: str | None
    """The quota selects the pods of this team; "" for all pods, None for no pods."""
    parent: Key | None
    used: int | None = None
    retained: int = 0
    reservations: int = 0
    cap: int = 0


@dataclass
class Ledger:
    """All quotas and pods at one revision, and the breaches of all earlier revisions."""

    pods: dict[Key, Pod] = field(default_factory=dict)
    """All pods in the API."""
    gone: dict[str, Pod] = field(default_factory=dict)
    """The bound pods that are no longer in the API and that a kernel still holds, by UID."""
    held: dict[str, int] = field(default_factory=dict)
    """The bytes that the kernels of the nodes hold for bound pods, by UID. The ledger adds each pod
    at its binding; later the node of the pod lowers the number."""
    off: set[str] = field(default_factory=set)
    """The nodes without power; they hold nothing."""
    quotas: dict[Key, Quota] = field(default_factory=dict)
    leader: str = ""
    revision: int = 0
    checked: int = 0
    fullest: dict[Key, int] = field(default_factory=dict)
    """The most that pods ever used, by quota, in bytes."""
    breaches: list[str] = field(default_factory=list)
    _history: deque[str] = field(default_factory=lambda: deque(maxlen=HISTORY_KEPT))

    def put(self, revision: int, path: str, raw: Mapping[str, Any] | None) -> None:
        """Apply a revision of an object, and check all quotas; `raw`: None for a deletion."""
        if path == LEASE and raw is not None:
            self.leader = raw["spec"].get("holderIdentity") or ""
        for prefix, put in ((QUOTAS, self._put_quota), (PODS, self._put_pod)):
            if path.startswith(prefix):
                namespace, _, name = path.removeprefix(prefix).partition("/")
                self._history.append(f"  {revision} {put((namespace, name), raw)}")
                self._check(revision)
        self.revision = revision

    def taken(self) -> dict[Key, int]:
        """The bytes that pods use of each quota: the sum over all pods."""
        running = ((pod, pod.pages) for pod in self.pods.values() if not pod.finished)
        return self._sums((*running, *self._ended()))

    def left(self) -> dict[Key, int]:
        """The bytes of each quota that ended pods still hold on their nodes."""
        return self._sums(self._ended())

    def bound_to(self, node: str) -> list[Pod]:
        """The pods in the API that are bound to a node."""
        return [pod for pod in self.pods.values() if pod.node == node]

    def chain(self, pod: Pod) -> set[Key]:
        """The quotas that govern a pod, and all quotas above them."""
        found = set()
        for (namespace, name), quota in self.quotas.items():
            if namespace == pod.namespace and quota.team in ("", pod.team):
                key: Key | None = (namespace, name)
                while key in self.quotas and key not in found:
                    found.add(key)
                    key = self.quotas[key].parent
        return found

    def _ended(self) -> list[tuple[Pod, int]]:
        """The pods that have ended, with the bytes that their nodes still hold."""
        ended = [pod for pod in self.pods.values() if pod.finished]
        return [(pod, self.held.get(pod.uid, 0)) for pod in (*ended, *self.gone.values())]

    def _sums(self, pods: Iterable[tuple[Pod, int]]) -> dict[Key, int]:
        sums = dict.fromkeys(self.quotas, 0)
        for pod, taken in pods:
            if taken:
                for key in self.chain(pod):
                    sums[key] += taken
        return sums

    def _put_pod(self, key: Key, raw: Mapping[str, Any] | None) -> str:
        before = self.pods.pop(key, None)
        if raw is None:
            if before is not None and before.node:
                self.gone[before.uid] = before
        else:
            pod = self.pods[key] = read_pod(key, raw)
            is_new_there = pod.node and not (before is not None and before.node)
            # Kubelet does not start a pod that has finished.
            if is_new_there and not pod.finished and pod.node not in self.off:
                self.held[pod.uid] = pod.pages
        self.gone = {uid: pod for uid, pod in self.gone.items() if self.held.get(uid)}
        return f"pod {'/'.join(key)}: {before} -> {self.pods.get(key)}"

    def _put_quota(self, key: Key, raw: Mapping[str, Any] | None) -> str:
        before = self.quotas.pop(key, None)
        if raw is None:
            return f"quota {'/'.join(key)} is gone"
        spec, status = raw["spec"], raw.get("status", {})
        parent = spec.get("parentRef")
        selected = spec.get("podSelector", {}).get("matchLabels", {})
        hard = read_quantity(spec["hard"][PAGES])
        used = status.get("used", {}).get(PAGES)
        retained = status.get("retained", {}).get(PAGES, "0")
        quota = Quota(
            hard=hard,
            team=None if "none" in selected else selected.get("team", ""),
            parent=None if parent is None else (parent["namespace"], parent["name"]),
            used=None if used is None else read_quantity(used),
            retained=read_quantity(retained),
            reservations=len(pending(status)),
            cap=hard,
        )
        if before is not None:
            quota.cap = max(hard, min(before.cap, quota.used or 0))
        self.quotas[key] = quota
        held = " ".join(f"[{line}]" for line in status.get("reservations", []))
        return f"quota {'/'.join(key)}: {quota} {held}"

    def _check(self, revision: int) -> None:
        self.checked += 1
        for key, taken in self.taken().items():
            quota = self.quotas[key]
            self.fullest[key] = max(taken, self.fullest.get(key, 0))
            if taken > quota.cap:
                self._record(f"at {revision} pods take {taken} of {'/'.join(key)}: {quota}")
            elif quota.used is not None and taken > quota.used:
                self._record(
                    f"at {revision} pods take {taken} of {'/'.join(key)}, uncounted: {quota}"
                )

    def _record(self, breach: str) -> None:
        if len(self.breaches) < BREACHES_KEPT:
            history = "\n".join(self._history) if not self.breaches else "  (more of the same)"
            self.breaches.append(f"{breach}\n{history}")


class Observer:
    """Watches etcd, also after restarts of etcd. `ledger`: the last revision seen."""

    def __init__(self, etcd: str) -> None:
        self._etcd = etcd
        self.ledger = Ledger()

    async def run(self) -> None:
        """Watch until the task is cancelled; AssertionError if etcd no longer has a revision."""
        timeout = aiohttp.ClientTimeout(total=None, connect=2)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                try:
                    await self._watch(session)
                except (aiohttp.ClientError, TimeoutError, OSError):
                    await asyncio.sleep(0.1)

    async def reach(self, revision: int) -> None:
        """Wait until the ledger has `revision`; renewals of the Lease make later revisions."""
        while self.ledger.revision < revision:
            await asyncio.sleep(0.1)

    async def _watch(self, session: aiohttp.ClientSession) -> None:
        request = {
            "key": encode(QUOTAS),
            "range_end": encode(PODS[:-1] + "0"),  # the character after "/"
            "start_revision": str(self.ledger.revision + 1),
        }
        body = {"create_request": request}
        async with session.post(f"{self._etcd}/v3/watch", json=body) as answer:
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(json.loads(line)["result"])

    def _take(self, result: Mapping[str, Any]) -> None:
        assert not result.get("canceled"), f"etcd ended the watch: {result}"
        for event in result.get("events", ()):
            stored = event["kv"]
            raw = None
            if event.get("type") != "DELETE":
                raw = json.loads(base64.b64decode(stored["value"]))
            path = base64.b64decode(stored["key"]).decode()
            self.ledger.put(int(stored["mod_revision"]), path, raw)


def read_pod(key: Key, raw: Mapping[str, Any]) -> Pod:
    """The pod that etcd stores as `raw`."""
    metadata, spec = raw["metadata"], raw["spec"]
    return Pod(
        *key,
        uid=metadata["uid"],
        team=metadata.get("labels", {}).get("team", ""),
        pages=sum(
            read_quantity(container["resources"].get("requests", {}).get(PAGES, "0"))
            for container in spec["containers"]
        ),
        phase=raw.get("status", {}).get("phase", "Pending"),
        node=spec.get("nodeName", ""),
        leaving="deletionTimestamp" in metadata,
    )


def read_quantity(text: str) -> int:
    """The bytes of an amount such as "64Mi"."""
    found = re.fullmatch(r"(\d+)(Ki|Mi|Gi|)", text)
    assert found is not None, text
    return int(found[1]) * _UNITS[found[2]]


def encode(key: str) -> str:
    """The key in base64, as in etcd's JSON."""
    return base64.b64encode(key.encode()).decode()
