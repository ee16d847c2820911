"""Ends that agents see, miss and are told of, against a model: no page without a quota.

The rules are the real ones; the agent, the API and everybody's lag behind it are modelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.recount import (
    ChargedPod,
    Unreported,
    merge_unreported,
    tell_unreported,
)
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.controller.census import LISTED_WITHIN, Census
from hugetlb_quota.controller.nodes import NodeReport, evidence
from hugetlb_quota.kube.pods import Pod

PAGE = Charge.from_resources({"hugepages-2Mi": "2Mi"})
KEYS = {name: QuotaKey("ns", name) for name in ("red", "blue")}
FOREST = Forest(
    [
        Quota(key, pod_selector=Selector.from_json({"matchLabels": {name: "yes"}}))
        for name, key in KEYS.items()
    ],
    {},
)
#: Fewer than there are pods, so that some wait for room.
ROOM = 2

Event = tuple[int, Pod | None, Pod | None]


@dataclass
class Agent:
    """What a running agent has in its head; what it has on disk is the machine's."""

    since: int
    seen: int
    pods: dict[str, Pod]
    carried: frozenset[str]
    deleted: dict[str, Pod] = field(default_factory=dict)
    told: dict[str, Unreported] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """What a quota is charged for, by UID, and whom it tells of."""

    pods: frozenset[str] = frozenset()
    retained: frozenset[str] = frozenset()
    unreported: tuple[Unreported, ...] = ()


class Node(RuleBasedStateMachine):
    """One node: its agent and the controller are killed, and see everything late."""

    def __init__(self) -> None:
        super().__init__()
        self.version, self.now, self.serial = 1, 0.0, 0
        self.api: dict[str, Pod] = {}
        self.events: list[Event] = []
        self.ran: dict[str, Pod] = {}
        self.cgroups = set[str]()
        # Each pod leaves a page; the agent's ledger has the names it learnt of whose cgroups.
        self.left = set[str]()
        self.ledger = set[str]()
        self.agent: Agent | None = None
        self.reports: list[tuple[NodeReport, frozenset[str]]] = []
        self.statuses = {key: Status() for key in KEYS.values()}
        self.counted = set[tuple[QuotaKey, str]]()
        # Of a node that never had an agent, everything is let go at once.
        self.agent_starts()
        self.agent_looks(is_killed=False)
        self.controller_begins()

    def controller_begins(self) -> None:
        self.census = Census()
        self.informed, self.informed_at = dict(self.api), self.version
        self.told = dict(self.statuses)
        self.reported = len(self.reports)
        if self.reports:
            self.census.report_changed(None, self.reports[-1][0], 0)

    def changes(self, old: Pod | None, new: Pod | None) -> None:
        self.version += 1
        pod = new or old
        assert pod
        if new is None:
            del self.api[pod.uid]
        else:
            new = replace(new, resource_version=self.version)
            self.api[new.uid] = new
            self.ran[new.uid] = new
        self.events.append((self.version, old, new))

    def events_after(self, version: int) -> list[Event]:
        return [event for event in self.events if event[0] > version]

    def draw(self, data: st.DataObject, uids: set[str]) -> Pod:
        return self.ran[data.draw(st.sampled_from(sorted(uids)))]

    # Pods

    @rule(colours=st.sampled_from([("red",), ("blue",), ("red", "blue")]))
    def runs(self, colours: tuple[str, ...]) -> None:
        self.serial += 1
        uid = f"pod-{self.serial}"
        labels = dict.fromkeys(colours, "yes")
        self.changes(None, Pod(uid, "ns", uid, 0, labels, node="n", demand=PAGE))
        self.cgroups.add(uid)

    @precondition(lambda self: self.cgroups & self.api.keys())
    @rule(data=st.data())
    def finishes(self, data: st.DataObject) -> None:
        pod = self.draw(data, self.cgroups & self.api.keys())
        self.cgroups.remove(pod.uid)
        self.left.add(pod.uid)
        self.changes(pod, replace(pod, finished=True))

    @precondition(lambda self: self.api)
    @rule(data=st.data())
    def is_deleted(self, data: st.DataObject) -> None:
        """By force if it has not finished: then its processes end later."""
        pod = self.draw(data, set(self.api))
        self.changes(self.api[pod.uid], None)

    @precondition(lambda self: self.cgroups - self.api.keys())
    @rule(data=st.data())
    def ends_after_its_deletion(self, data: st.DataObject) -> None:
        pod = self.draw(data, self.cgroups - self.api.keys())
        self.cgroups.remove(pod.uid)
        self.left.add(pod.uid)

    # The agent

    @precondition(lambda self: self.agent is None)
    @rule()
    def agent_starts(self) -> None:
        last = self.reports[-1][0].pods if self.reports else ()
        carried = frozenset(pod.uid for pod in last if pod.quotas)
        self.agent = Agent(self.version, self.version, dict(self.api), carried)
        self.agent_reads_quotas()

    @precondition(lambda self: self.agent)
    @rule()
    def agent_is_killed(self) -> None:
        self.agent = None

    @precondition(lambda self: self.agent)
    @rule()
    def agent_watches(self) -> None:
        assert self.agent
        for version, old, new in self.events_after(self.agent.seen):
            if new is not None:
                self.agent.pods[new.uid] = new
            elif old is not None:
                self.agent.deleted[old.uid] = self.agent.pods.pop(old.uid)
            self.agent.seen = version

    @precondition(lambda self: self.agent)
    @rule()
    def agent_reads_quotas(self) -> None:
        assert self.agent
        told = {key: status.unreported for key, status in self.statuses.items()}
        self.agent.told = dict(merge_unreported(told))

    @precondition(lambda self: self.agent)
    @rule(is_killed=st.booleans())
    def agent_looks(self, is_killed: bool) -> None:
        """Looks, settles, writes down, and reports, unless it is killed before."""
        agent = self.agent
        assert agent
        over = {uid for uid, pod in agent.pods.items() if pod.finished} | agent.deleted.keys()
        named = agent.pods.keys() | agent.deleted.keys() | agent.told.keys() | agent.carried
        self.ledger |= named
        listed = (agent.pods.keys() - over) | (named & self.cgroups)
        nameless = self.cgroups - named
        agent.carried &= self.cgroups
        for uid in agent.deleted.keys() - self.cgroups:
            del agent.deleted[uid]
        if is_killed:
            self.agent = None
            return
        retained = (self.left & self.ledger) - listed
        pods = [ChargedPod(uid, PAGE, quotas(self.ran[uid])) for uid in sorted(listed)]
        pods += [ChargedPod(uid, Charge(), frozenset()) for uid in sorted(nameless)]
        settled = frozenset(agent.told.keys() - listed)
        report = NodeReport("n", None, "boot", agent.seen, tuple(pods))
        report = replace(report, pods_since=agent.since, settled=settled)
        self.reports.append((report, frozenset(retained)))

    # The controller

    @rule()
    def controller_watches_pods(self) -> None:
        for version, old, new in self.events_after(self.informed_at):
            pod = new or old
            assert pod
            known = self.informed.pop(pod.uid, None)
            if new is not None:
                self.informed[new.uid] = new
            self.census.pod_changed(known, new, version)
            self.informed_at = version

    @rule(misses_some=st.booleans())
    def controller_watches_reports(self, misses_some: bool) -> None:
        new = self.reports[self.reported :]
        for report, _ in new[-1:] if misses_some else new:
            self.census.report_changed(None, report, 0)
        self.reported = len(self.reports)

    @rule()
    def controller_watches_quotas(self) -> None:
        self.told = dict(self.statuses)

    @rule(seconds=st.sampled_from([0.0, LISTED_WITHIN]), first=st.sampled_from([1, 2]))
    def recounts(self, seconds: float, first: int) -> None:
        """And is cut off after the ``first`` quotas."""
        self.now += seconds
        last = self.reports[self.reported - 1 : self.reported]
        known = {report.node: report for report, _ in last}
        counted = self.census.count(
            FOREST,
            self.informed.values(),
            evidence({"n": "boot"}, known.values()),
            known,
            merge_unreported({key: status.unreported for key, status in self.told.items()}),
            seen_up_to=self.informed_at,
            now=self.now,
        )
        for key in list(self.statuses)[:first]:
            unreported = [each for each in counted.unreported if key in each.quotas]
            retained = {uid for _, left in last for uid in left if key in quotas(self.ran[uid])}
            self.statuses[key] = Status(
                frozenset(pod.uid for pod in counted.pods if key in pod.quotas),
                frozenset(retained),
                tell_unreported(self.statuses[key].unreported, unreported, ROOM),
            )
            self.counted |= {(key, uid) for uid in self.statuses[key].pods}

    @precondition(lambda self: self.can_spare_its_controller())
    @rule()
    def another_controller_leads(self) -> None:
        self.controller_begins()

    def can_spare_its_controller(self) -> bool:
        """Whether all that it alone remembers is written down: see docs/operations.md."""
        told = {each.uid for status in self.statuses.values() for each in status.unreported}
        listed = {pod.uid for report, _ in self.reports[-1:] for pod in report.pods if pod.quotas}
        settled = {uid for _, retained in self.reports[-1:] for uid in retained}
        return self.ran.keys() <= self.api.keys() | told | listed | settled

    @invariant()
    def every_page_counts_in_every_quota(self) -> None:
        for key, status in self.statuses.items():
            assert len(status.unreported) <= ROOM
            # Before that, its reservation counts.
            for uid in self.left | self.cgroups:
                if (key, uid) in self.counted:
                    assert uid in status.pods | status.retained, (key, uid)

    def teardown(self) -> None:
        if self.agent is None:
            self.agent_starts()
        for uid in set(self.cgroups & self.api.keys()):
            self.cgroups.remove(uid)
            self.left.add(uid)
            self.changes(self.api[uid], replace(self.api[uid], finished=True))
        for uid in set(self.cgroups):
            self.cgroups.remove(uid)
            self.left.add(uid)
        turns: list[Callable[[], object]] = [
            self.agent_watches,
            self.agent_reads_quotas,
            lambda: self.agent_looks(is_killed=False),
            self.controller_watches_pods,
            lambda: self.controller_watches_reports(misses_some=False),
            self.controller_watches_quotas,
            lambda: self.recounts(seconds=LISTED_WITHIN, first=2),
        ]
        for _ in range(2 * len(self.ran) + 3):
            for turn in turns:
                turn()
                self.every_page_counts_in_every_quota()
        for status in self.statuses.values():
            assert (status.pods, status.unreported) == (frozenset(), ())


def quotas(pod: Pod) -> frozenset[QuotaKey]:
    """Those that govern it."""
    return frozenset(quota.key for quota in FOREST.selecting(pod.namespace, pod.labels))


TestNode = Node.TestCase
TestNode.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
