"""The simulated cluster of ``test_charges_machine``: its kernel, its API server and its agents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import NamedTuple

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.controller.counting.nodes import NodeFacts, NodeReport, ReportedPod
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.page_size import PageSize

SIZE = PageSize(2 << 20)
START = datetime(2030, 1, 1, tzinfo=UTC)
NODES = ("n", "m")
#: The pages that each pod requests.
DEMAND = 3


def pages(count: int) -> Charge:
    return Charge({SIZE: count * SIZE.bytes}) if count else NOTHING


def key(name: str) -> QuotaKey:
    return QuotaKey("ns", name)


ROOT, RED, BLUE = key("root"), key("red"), key("blue")
NEVER = Selector.from_json({"matchLabels": {"no": "pod"}})


def quota(name: str) -> Quota:
    colour = Selector.from_json({"matchLabels": {name: "yes"}})
    return Quota(key(name), parent=ROOT, pod_selector=colour, reparents=True)


def is_charged(name: QuotaKey, payers: frozenset[QuotaKey], forest: Forest) -> bool:
    """Whether quota ``name`` is a payer or an ancestor of a payer."""
    above = {link.key for payer in payers if payer in forest for link in forest.attached(payer)}
    return name in above


class Charged(NamedTuple):
    """The huge pages on one node that are charged to one pod."""

    node: str
    pages: int


class Kernel:
    """The kernels of all nodes. Both dictionaries have the UID of the pod as key.

    ``cgroups``: the pods that run. ``files``: the pages that gone pods left in shared files.
    """

    def __init__(self) -> None:
        self.cgroups: dict[str, Charged] = {}
        self.files: dict[str, Charged] = {}

    def start(self, uid: str, node: str, count: int = 0) -> None:
        self.cgroups[uid] = Charged(node, count)

    def map(self, uid: str, count: int) -> None:
        self.cgroups[uid] = self.cgroups[uid]._replace(pages=count)

    def end(self, uid: str) -> None:
        """Remove the cgroup of the pod. Its pages stay in a file."""
        charged = self.cgroups.pop(uid)
        if charged.pages:
            self.files[uid] = charged

    def boot(self, node: str) -> None:
        self.files = {uid: it for uid, it in self.files.items() if it.node != node}
        self.cgroups = {uid: it for uid, it in self.cgroups.items() if it.node != node}

    def node_of(self, uid: str) -> str | None:
        """The node that has the cgroup or the file of a pod."""
        charged = self.cgroups.get(uid) or self.files.get(uid)
        return None if charged is None else charged.node


@dataclass
class Status:
    """The stored status of one quota; ``pods`` and ``retained``: the charged UIDs."""

    counter: Counter
    pods: frozenset[str] = frozenset()
    retained: Mapping[str, Charge] = field(default_factory=dict)


class PodEvent(NamedTuple):
    """One write of a pod; ``pod``: the new object, or None after a deletion."""

    version: int
    uid: str
    pod: Pod | None


class NodeEvent(NamedTuple):
    """One write of a Node."""

    version: int
    old: NodeFacts
    new: NodeFacts


class ApiServer:
    """All objects in their newest version, and the events since the start."""

    def __init__(self) -> None:
        self.version = 100
        self.pods: dict[str, Pod] = {}
        self.pod_events: list[PodEvent] = []
        self.quotas = {
            ROOT: Quota(ROOT, pod_selector=NEVER),
            RED: quota("red"),
            BLUE: quota("blue"),
        }
        self.statuses = {name: Status(Counter(name, NOTHING)) for name in self.quotas}
        self.nodes = {
            name: NodeFacts(name, "boot-0", out_of_service=False, version=1) for name in NODES
        }
        self.node_events: list[NodeEvent] = []
        # The agent of m has not reported yet.
        self.reports = {"n": NodeReport("n", None, "boot-0", 1)}

    def write_pod(self, pod: Pod) -> None:
        self.version += 1
        stored = replace(pod, resource_version=self.version)
        self.pods[pod.uid] = stored
        self.pod_events.append(PodEvent(self.version, pod.uid, stored))

    def delete_pod(self, uid: str) -> None:
        self.version += 1
        del self.pods[uid]
        self.pod_events.append(PodEvent(self.version, uid, None))

    def write_boot_id(self, name: str) -> None:
        self.version += 1
        old = self.nodes[name]
        new = replace(old, boot_id=f"boot-{self.version}", version=self.version)
        self.nodes[name] = new
        self.node_events.append(NodeEvent(self.version, old, new))

    def unbound(self) -> set[str]:
        return {uid for uid, pod in self.pods.items() if pod.node is None}

    def governing(self, labels: tuple[str, ...]) -> list[QuotaKey]:
        """The quotas that govern a new pod with these labels."""
        selecting = [key(label) for label in labels if key(label) in self.quotas]
        return [name for name in selecting if not self.quotas[name].terminating]

    def reservations(self) -> list[Reservation]:
        """The lines in the statuses of all quotas."""
        return [line for each in self.statuses.values() for line in each.counter.reservations]


class Agent:
    """The agent of one node.

    ``pods``: the pods of the node at version ``seen``. ``named``: the pods that the last report
    names, or that were deleted since.
    """

    def __init__(self, node: str, api: ApiServer, kernel: Kernel) -> None:
        self.node, self.api, self.kernel = node, api, kernel
        self.seen = api.version
        self.pods = {uid: pod for uid, pod in api.pods.items() if pod.node == node}
        last = api.reports.get(node)
        self.named = {} if last is None else {pod.uid: pod for pod in last.pods if pod.is_named}

    def watch(self) -> None:
        for version, uid, pod in self.api.pod_events:
            if version <= self.seen:
                continue
            if pod is not None and pod.node == self.node:
                self.pods[uid] = pod
            elif pod is None and uid in self.pods:
                self.named[uid] = entry(self.pods.pop(uid), live=False, charged=NOTHING)
        self.seen = self.api.version

    def report(self) -> None:
        running = self._charged(self.kernel.cgroups)
        left = self._charged(self.kernel.files)
        awaited = {uid for uid, pod in self.pods.items() if not pod.finished}
        entries = []
        for uid in sorted(running.keys() | left.keys() | awaited):
            live = uid in running or uid in awaited
            charged = pages(running.get(uid, left.get(uid, 0)))
            if uid in self.pods:
                entries.append(entry(self.pods[uid], live=live, charged=charged))
            elif uid in self.named:
                entries.append(replace(self.named[uid], live=live, charged=charged))
            else:
                entries.append(ReportedPod(uid, "", "", {}, live, charged))
        self.named = {uid: pod for uid, pod in self.named.items() if uid in running | left}
        self.api.reports[self.node] = replace(
            self.api.reports.get(self.node, NodeReport(self.node, None, None, 0)),
            boot_id=self.api.nodes[self.node].boot_id,
            pods_resource_version=self.seen,
            pods=tuple(entries),
        )

    def _charged(self, pods: Mapping[str, Charged]) -> dict[str, int]:
        return {uid: it.pages for uid, it in pods.items() if it.node == self.node}


def entry(pod: Pod, *, live: bool, charged: Charge) -> ReportedPod:
    return ReportedPod(pod.uid, pod.namespace, pod.name, pod.labels, live, charged, pod.demand)
