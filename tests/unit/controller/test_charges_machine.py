"""No charge is lost or stays too long, whichever of controller and agents is late or killed.

The machine compares the quotas' statuses with the kernel and the API server. Each program sees the
writes of the others late, and is killed at any moment, the controller also between two writes.
Nodes boot. A quota is deleted, and its parent inherits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hugetlb_quota.accounting.attribution import Attribution, read_lines
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.recount import recount, tally
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.controller.counting.census import Census
from hugetlb_quota.controller.counting.count import Count
from hugetlb_quota.controller.counting.node_history import NodeHistory, evidence, heirs
from hugetlb_quota.controller.counting.nodes import NodeFacts, NodeReport, ReportedPod
from hugetlb_quota.controller.counting.snapshot import Snapshot
from hugetlb_quota.controller.writing.node_spec import Succession, wanted_spec
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.page_size import PageSize

SIZE = PageSize(2 << 20)
START = datetime(2030, 1, 1, tzinfo=UTC)
NODES = ("n", "m")
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


@dataclass
class Status:
    """The stored status of one quota; ``pods`` and ``retained``: the charged UIDs."""

    counter: Counter
    pods: frozenset[str] = frozenset()
    retained: Mapping[str, Charge] = field(default_factory=dict)


@dataclass
class Agent:
    """An agent's memory: its pods up to ``seen``, and the pods named in its last report."""

    seen: int
    pods: dict[str, Pod]
    carried: dict[str, ReportedPod]


Event = tuple[int, Pod | None, Pod | None]


class Cluster(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.version = 100
        self.serial = 0
        self.expected: dict[str, frozenset[QuotaKey]] = {}
        self.counted = set[str]()
        # The kernel: by UID the node and the charged pages, of cgroups and of gone pods.
        self.cgroups: dict[str, tuple[str, int]] = {}
        self.left: dict[str, tuple[str, int]] = {}
        # The API server.
        self.api: dict[str, Pod] = {}
        self.events: list[Event] = []
        self.quotas = {
            ROOT: Quota(ROOT, pod_selector=NEVER),
            RED: quota("red"),
            BLUE: quota("blue"),
        }
        self.statuses = {name: Status(Counter(name, NOTHING)) for name in self.quotas}
        self.nodes = {
            name: NodeFacts(name, "boot-0", out_of_service=False, version=1) for name in NODES
        }
        self.node_events: list[tuple[int, NodeFacts, NodeFacts]] = []
        self.objects = {"n": NodeReport("n", None, "boot-0", 1)}
        # The agent of m has not reported yet. An agent whose object was deleted creates it again.
        self.deleted = set[str]()
        self.heard = {"n"}
        self.agents: dict[str, Agent | None] = dict.fromkeys(NODES)
        self.controller_starts()

    def controller_starts(self) -> None:
        self.census, self.history = Census(), NodeHistory()
        self.informed = dict(self.api)
        self.informed_at = self.listed_at = self.version
        self.nodes_seen, self.nodes_at = dict(self.nodes), self.version
        self.first_seen: dict[str, int] = {}
        for node in self.nodes.values():
            self.history.node_changed(None, node, 0)
        self.objects_seen: dict[str, NodeReport] = {}
        self.sees_reports()
        self.sees_quotas()

    def changes(self, old: Pod | None, new: Pod | None) -> None:
        self.version += 1
        if new is not None:
            new = replace(new, resource_version=self.version)
            self.api[new.uid] = new
        elif old is not None:
            del self.api[old.uid]
        self.events.append((self.version, old, new))

    # Pods

    @rule(colours=st.sampled_from([("red",), ("blue",), ("red", "blue")]))
    def is_admitted_and_created(self, colours: tuple[str, ...]) -> None:
        governing = [
            key(name)
            for name in colours
            if key(name) in self.quotas and not self.quotas[key(name)].terminating
        ]
        if not governing:
            return
        self.serial += 1
        uid = f"pod-{self.serial}"
        line = Reservation(uid, f"ns/{uid}", pages(DEMAND), START, f"request-{uid}")
        for name in (*governing, ROOT):
            self.statuses[name].counter = self.statuses[name].counter.charge(line)
        labels = {name.name: "yes" for name in governing}
        self.expected[uid] = frozenset(governing)
        self.changes(None, Pod(uid, "ns", uid, 0, labels, demand=pages(DEMAND)))

    def pod(self, data: st.DataObject, among: set[str]) -> Pod:
        return self.api[data.draw(st.sampled_from(sorted(among)))]

    def unbound(self) -> set[str]:
        return {uid for uid, pod in self.api.items() if pod.node is None}

    @precondition(lambda self: self.unbound())
    @rule(data=st.data(), node=st.sampled_from(NODES))
    def is_bound_and_runs(self, data: st.DataObject, node: str) -> None:
        pod = self.pod(data, self.unbound())
        self.changes(pod, replace(pod, node=node))
        self.cgroups[pod.uid] = (node, 0)

    @precondition(lambda self: self.cgroups)
    @rule(data=st.data(), count=st.integers(1, DEMAND))
    def maps(self, data: st.DataObject, count: int) -> None:
        uid = data.draw(st.sampled_from(sorted(self.cgroups)))
        self.cgroups[uid] = (self.cgroups[uid][0], count)

    def ends(self, uid: str) -> None:
        node, count = self.cgroups.pop(uid)
        if count:
            self.left[uid] = (node, count)

    @precondition(lambda self: self.cgroups.keys() & self.api.keys())
    @rule(data=st.data(), is_deleted=st.booleans())
    def finishes(self, data: st.DataObject, is_deleted: bool) -> None:
        pod = self.pod(data, self.cgroups.keys() & self.api.keys())
        self.ends(pod.uid)
        self.changes(pod, replace(pod, finished=True))
        if is_deleted:
            self.changes(self.api[pod.uid], None)

    @precondition(lambda self: self.api)
    @rule(data=st.data())
    def is_deleted(self, data: st.DataObject) -> None:
        """If the pod has not finished, the deletion is forced, and its processes end later."""
        self.changes(self.pod(data, set(self.api)), None)

    @precondition(lambda self: self.cgroups.keys() - self.api.keys())
    @rule(data=st.data())
    def ends_after_its_deletion(self, data: st.DataObject) -> None:
        self.ends(data.draw(st.sampled_from(sorted(self.cgroups.keys() - self.api.keys()))))

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def a_file_is_removed(self, data: st.DataObject) -> None:
        del self.left[data.draw(st.sampled_from(sorted(self.left)))]

    @rule(name=st.sampled_from(NODES))
    def a_node_boots(self, name: str) -> None:
        """The Node shows the new boot, and then kubelet restarts the pods that have not ended."""
        if name in self.deleted:
            return
        self.agents[name] = None
        self.left = {uid: it for uid, it in self.left.items() if it[0] != name}
        self.cgroups = {uid: it for uid, it in self.cgroups.items() if it[0] != name}
        self.version += 1
        old = self.nodes[name]
        new = replace(old, boot_id=f"boot-{self.version}", version=self.version)
        self.nodes[name] = new
        self.node_events.append((self.version, old, new))
        for uid, pod in self.api.items():
            if pod.node == name and not pod.finished:
                self.cgroups[uid] = (name, 0)

    # Agents

    @rule(name=st.sampled_from(NODES))
    def an_agent_starts(self, name: str) -> None:
        mine = {uid: pod for uid, pod in self.api.items() if pod.node == name}
        if name in self.deleted:
            return
        last = self.objects.get(name)
        carried = {} if last is None else {pod.uid: pod for pod in last.pods if pod.is_named}
        self.agents[name] = Agent(self.version, mine, carried)

    @rule(name=st.sampled_from(NODES))
    def an_agent_is_killed(self, name: str) -> None:
        if name not in self.deleted:
            self.agents[name] = None

    @rule(name=st.sampled_from(NODES))
    def a_report_is_deleted(self, name: str) -> None:
        """The agent runs and remembers its report; no other program does."""
        if self.agents[name] is not None and self.objects_seen.get(name) == self.objects.get(name):
            self.deleted.add(name)
            self.objects.pop(name, None)

    @rule(name=st.sampled_from(NODES))
    def an_agent_watches(self, name: str) -> None:
        agent = self.agents[name]
        if agent is None:
            return
        for version, old, new in self.events:
            if version <= agent.seen:
                continue
            if new is not None and new.node == name:
                agent.pods[new.uid] = new
            elif new is None and old is not None and old.uid in agent.pods:
                gone = agent.pods.pop(old.uid)
                agent.carried[old.uid] = entry(gone, live=False, charged=NOTHING)
        agent.seen = self.version

    @rule(name=st.sampled_from(NODES))
    def an_agent_reports(self, name: str) -> None:
        agent = self.agents[name]
        if agent is None:
            return
        here = {uid: count for uid, (node, count) in self.cgroups.items() if node == name}
        left = {uid: count for uid, (node, count) in self.left.items() if node == name}
        coming = {uid for uid, pod in agent.pods.items() if not pod.finished}
        entries = []
        for uid in sorted(here.keys() | left.keys() | coming):
            live, charged = uid in here or uid in coming, pages(here.get(uid, left.get(uid, 0)))
            if uid in agent.pods:
                entries.append(entry(agent.pods[uid], live=live, charged=charged))
            elif uid in agent.carried:
                entries.append(replace(agent.carried[uid], live=live, charged=charged))
            else:
                entries.append(ReportedPod(uid, "", "", {}, live, charged))
        agent.carried = {uid: pod for uid, pod in agent.carried.items() if uid in here | left}
        self.deleted.discard(name)
        self.objects[name] = replace(
            self.objects.get(name, NodeReport(name, None, None, 0)),
            boot_id=self.nodes[name].boot_id,
            pods_resource_version=agent.seen,
            pods=tuple(entries),
        )

    # Quotas

    @precondition(
        lambda self: (
            RED in self.quotas
            and not self.quotas[RED].terminating
            and not self.statuses[RED].pods
            and not self.statuses[RED].counter.pending
        )
    )
    @rule()
    def a_quota_is_deleted(self) -> None:
        self.quotas[RED] = replace(self.quotas[RED], terminating=True)

    def finalizer_goes(self) -> None:
        if RED in self.quotas and self.quotas[RED].terminating:
            status = self.statuses[RED]
            if not (status.pods or status.retained or status.counter.reservations):
                del self.quotas[RED], self.statuses[RED]
                for uid, quotas in self.expected.items():
                    if RED in quotas:
                        # The parent inherits what the pod left, besides other payers.
                        self.expected[uid] = quotas - {RED} | {ROOT}

    # The controller

    @rule()
    def sees_pods(self) -> None:
        for version, _, new in self.events:
            if version > self.informed_at:
                uid = (new or _).uid  # type: ignore[union-attr]
                before = self.informed.pop(uid, None)
                if new is not None:
                    self.informed[uid] = new
                self.census.pod_changed(before, new, version)
        self.informed_at = self.version

    @rule()
    def lists_pods_again(self) -> None:
        """The controller never sees pods that came and went since its last list."""
        before, self.informed = self.informed, dict(self.api)
        self.informed_at = self.listed_at = self.version
        for uid in before.keys() - self.informed.keys():
            self.census.pod_changed(before[uid], None, self.version, missed=True)
        for uid, pod in self.informed.items():
            if before.get(uid) != pod:
                self.census.pod_changed(before.get(uid), pod, pod.resource_version, missed=True)

    @rule(listed=st.booleans())
    def sees_nodes(self, listed: bool) -> None:
        if listed:
            for name, node in self.nodes.items():
                if node != self.nodes_seen[name]:
                    self.history.node_changed(self.nodes_seen[name], node, 0)
        else:
            for version, old, new in self.node_events:
                if version > self.nodes_at:
                    self.history.node_changed(old, new, version)
        self.nodes_seen, self.nodes_at = dict(self.nodes), self.version

    @rule()
    def sees_reports(self) -> None:
        before, self.objects_seen = self.objects_seen, dict(self.objects)
        for name in NODES:
            old, new = before.get(name), self.objects.get(name)
            if old != new:
                self.history.report_changed(old, new)
        self.reports = self.history.reports(self.objects)

    @rule()
    def sees_quotas(self) -> None:
        self.quotas_seen = dict(self.quotas)
        self.counters_seen = [status.counter for status in self.statuses.values()]
        for counter in self.counters_seen:
            for line in counter.pending:
                self.first_seen.setdefault(line.uid, self.version)

    @rule(first=st.integers(1, 3), writes_specs=st.booleans())
    def recounts(self, first: int, writes_specs: bool) -> None:
        """Count, and write only the ``first`` quotas, as if killed then."""
        forest = Forest(self.quotas_seen.values(), {})
        lines = read_lines(self.counters_seen, forest)
        snapshot = Snapshot(
            Attribution(forest, heirs(self.reports.values()), lines),
            self.informed.values(),
            self.informed_at,
            self.listed_at,
            evidence(self.nodes_seen, self.reports.values(), self.history),
            self.reports,
        )
        count = self.census.count(snapshot)
        self.writes(count, forest, first)
        if first == 3:
            self.heard |= self.reports.keys()
        if writes_specs:
            for report in snapshot.valid_reports():
                wanted = wanted_spec(report, count.retained, Succession(forest, ()))
                stored = self.objects.get(report.node)
                if stored is not None and stored.spec == report.spec:
                    self.objects[report.node] = replace(stored, spec=wanted)
        self.finalizer_goes()

    @rule()
    def the_controller_keeps_up(self) -> None:
        self.sees_pods()
        self.sees_nodes(listed=False)
        self.sees_reports()
        self.sees_quotas()
        self.recounts(first=3, writes_specs=True)

    @rule()
    def a_pod_runs_and_is_counted(self) -> None:
        """The usual sequence, so that other rules have a pod to act on."""
        self.is_admitted_and_created(("blue",))
        pod = self.api[f"pod-{self.serial}"]
        self.changes(pod, replace(pod, node="n"))
        self.cgroups[pod.uid] = ("n", 1)
        self.the_controller_keeps_up()

    def writes(self, count: Count, forest: Forest, first: int) -> None:
        totals = tally(forest, count.pods, count.retained)
        # From the leaves up, as the recounter writes.
        for name in [name for name in reversed(self.statuses) if name in totals][:first]:
            status = self.statuses[name]
            gone = {line.id for line in status.counter.pending if self.is_gone(line)}
            self.counted |= {pod.uid for pod in count.pods}
            self.statuses[name] = Status(
                recount(status.counter, totals[name], gone, count.identities),
                frozenset(pod.uid for pod in count.pods if charges(forest, pod.quotas, name)),
                {
                    each.uid: each.charge
                    for each in count.retained
                    if charges(forest, each.quotas, name)
                },
            )

    def is_gone(self, line: Reservation) -> bool:
        """Whether the pod was released, or its request had ended when pods were last seen."""
        watched = self.first_seen.get(line.uid, self.version + 1) <= self.informed_at
        return self.census.was_released(line.uid) or (watched and line.uid not in self.api)

    @rule()
    def another_controller_leads(self) -> None:
        if not self.deleted:
            self.controller_starts()

    # Invariants

    @invariant()
    def every_charge_of_the_kernel_is_in_every_paying_quota(self) -> None:
        # Pods that may have been created and deleted while no controller looked.
        doubtful = {
            line.uid
            for status in self.statuses.values()
            for line in status.counter.reservations
            if line.counted == "?" or (not line.counted and line.uid not in self.counted)
        }
        for uid, paying in list(self.expected.items()):
            if uid not in self.cgroups and uid not in self.left:
                continue
            where, _ = self.cgroups.get(uid) or self.left[uid]
            if where not in self.heard:
                if self.is_remembered(uid):
                    continue
                if uid not in self.counted:
                    # No controller saw the pod, and its node has no agent: no program can know.
                    del self.expected[uid]
                    continue
            for name in {ROOT} | (paying & self.quotas.keys()):
                if name in self.quotas and self.quotas[name].terminating:
                    continue  # the parent may have inherited the charge already
                status = self.statuses[name]
                pending = {line.uid for line in status.counter.pending}
                assert uid in status.pods | status.retained.keys() | pending | doubtful, (uid, name)

    def is_remembered(self, uid: str) -> bool:
        """Whether some quota has the pod's line, and so pays when its node first reports."""
        lines = [line for status in self.statuses.values() for line in status.counter.reservations]
        return any(line.uid == uid for line in lines)

    def all_programs_run(self) -> None:
        for name in NODES:
            if self.agents[name] is None:
                self.an_agent_starts(name)
            self.an_agent_watches(name)
            self.an_agent_reports(name)
        self.the_controller_keeps_up()
        self.every_charge_of_the_kernel_is_in_every_paying_quota()

    def teardown(self) -> None:
        for _ in range(5):
            self.all_programs_run()
        forest = Forest(self.quotas.values(), {})
        assert RED not in self.quotas or not self.quotas[RED].terminating or self.statuses[RED].pods
        for name, status in self.statuses.items():
            paid = {uid for uid, paying in self.expected.items() if charges(forest, paying, name)}
            running = {uid for uid, pod in self.api.items() if not pod.finished}
            assert status.pods == paid & (running | self.cgroups.keys()), name
            left = {uid: pages(n) for uid, (_, n) in self.left.items() if uid in paid}
            assert status.retained == left, name
            assert status.counter.pending == (), name
            # Only pods without a node, or that no agent ever saw, still have lines.
            unnamed = {
                pod.uid for each in self.objects.values() for pod in each.pods if not pod.is_named
            }
            lines = {line.uid for line in status.counter.reservations}
            assert lines <= unnamed | self.unbound(), name


def entry(pod: Pod, *, live: bool, charged: Charge) -> ReportedPod:
    return ReportedPod(pod.uid, pod.namespace, pod.name, pod.labels, live, charged, pod.demand)


def charges(forest: Forest, paying: frozenset[QuotaKey], name: QuotaKey) -> bool:
    above = {link.key for quota in paying if quota in forest for link in forest.attached(quota)}
    return name in above


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=300, stateful_step_count=60)
