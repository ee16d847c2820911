"""No charge is lost or stays too long, whether the controller or an agent is late or killed.

The machine compares the quotas' statuses with the kernel and the API server. Each program sees the
writes of the others late. A rule kills a program at any moment, the controller also between two
writes. Nodes boot. A quota is deleted, and its parent inherits.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.kube.pods import Pod
from tests.unit.controller.simulated_cluster import (
    DEMAND,
    NODES,
    RED,
    ROOT,
    START,
    Agent,
    ApiServer,
    Kernel,
    is_charged,
    pages,
)
from tests.unit.controller.simulated_controller import Controller


class Expected:
    """The quotas that must pay for each pod, and the checks of the stored statuses."""

    def __init__(self, kernel: Kernel, api: ApiServer) -> None:
        self.kernel, self.api = kernel, api
        self.payers: dict[str, frozenset[QuotaKey]] = {}
        #: The pods and the nodes that a controller has counted.
        self.counted_pods = set[str]()
        self.counted_nodes = {"n"}

    def root_inherits(self) -> None:
        """The parent of RED pays for the pages that the pods of RED left."""
        for uid, payers in self.payers.items():
            if RED in payers:
                self.payers[uid] = payers - {RED} | {ROOT}

    def check_charges(self) -> None:
        """Check that every charge of the kernel is in every quota that pays."""
        for uid, payers in list(self.payers.items()):
            node = self.kernel.node_of(uid)
            if node is None:
                continue
            if node not in self.counted_nodes:
                if self.has_line(uid):
                    continue  # the quotas pay when the node first reports
                if uid not in self.counted_pods:
                    # No program can know the pod: no controller saw it, and its node has no agent.
                    del self.payers[uid]
                    continue
            for name in {ROOT} | (payers & self.api.quotas.keys()):
                if name in self.api.quotas and self.api.quotas[name].terminating:
                    continue  # the parent may have inherited the charge already
                status = self.api.statuses[name]
                pending = {line.uid for line in status.counter.pending}
                charged = status.pods | status.retained.keys() | pending
                assert uid in charged | self.doubtful(), (uid, name)

    def has_line(self, uid: str) -> bool:
        return any(line.uid == uid for line in self.api.reservations())

    def doubtful(self) -> set[str]:
        """Pods that may have been created and deleted while no controller looked."""
        return {
            line.uid
            for line in self.api.reservations()
            if line.counted == "?" or (not line.counted and line.uid not in self.counted_pods)
        }

    def check_at_rest(self) -> None:
        """Check each status after all programs have seen everything."""
        quotas, statuses = self.api.quotas, self.api.statuses
        assert RED not in quotas or not quotas[RED].terminating or statuses[RED].pods
        forest = Forest(quotas.values(), {})
        running = {uid for uid, pod in self.api.pods.items() if not pod.finished}
        for name, status in statuses.items():
            paid = {uid for uid, payers in self.payers.items() if is_charged(name, payers, forest)}
            assert status.pods == paid & (running | self.kernel.cgroups.keys()), name
            left = {uid: pages(it.pages) for uid, it in self.kernel.files.items() if uid in paid}
            assert status.retained == left, name
            assert status.counter.pending == (), name
            # Only pods without a node, and pods that no agent saw in the API, still have lines.
            lines = {line.uid for line in status.counter.reservations}
            assert lines <= self.api.unbound() | self.unnamed(), name

    def unnamed(self) -> set[str]:
        """The pods that reports list without a name."""
        entries = [entry for report in self.api.reports.values() for entry in report.pods]
        return {entry.uid for entry in entries if not entry.is_named}


class Charges(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.api = Kernel(), ApiServer()
        self.agents: dict[str, Agent | None] = dict.fromkeys(NODES)
        self.controller = Controller(self.api)
        self.serial = 0
        self.expected = Expected(self.kernel, self.api)
        #: The nodes with a deleted report, which the running agent will create again.
        self.unreported = set[str]()

    # Pods

    @rule(colours=st.sampled_from([("red",), ("blue",), ("red", "blue")]))
    def a_pod_is_created(self, colours: tuple[str, ...]) -> None:
        governing = self.api.governing(colours)
        if not governing:
            return
        self.serial += 1
        uid = f"pod-{self.serial}"
        line = Reservation(uid, f"ns/{uid}", pages(DEMAND), START, f"request-{uid}")
        for name in (*governing, ROOT):
            status = self.api.statuses[name]
            status.counter = status.counter.charge(line)
        labels = {name.name: "yes" for name in governing}
        self.expected.payers[uid] = frozenset(governing)
        self.api.write_pod(Pod(uid, "ns", uid, 0, labels, demand=pages(DEMAND)))

    @precondition(lambda self: self.api.unbound())
    @rule(data=st.data(), node=st.sampled_from(NODES))
    def a_pod_is_bound_and_runs(self, data: st.DataObject, node: str) -> None:
        uid = one_of(self.api.unbound(), data)
        self.api.write_pod(replace(self.api.pods[uid], node=node))
        self.kernel.start(uid, node)

    @precondition(lambda self: self.kernel.cgroups)
    @rule(data=st.data(), count=st.integers(1, DEMAND))
    def a_pod_maps_pages(self, data: st.DataObject, count: int) -> None:
        self.kernel.map(one_of(self.kernel.cgroups.keys(), data), count)

    @precondition(lambda self: self.kernel.cgroups.keys() & self.api.pods.keys())
    @rule(data=st.data(), is_deleted=st.booleans())
    def a_pod_finishes(self, data: st.DataObject, is_deleted: bool) -> None:
        uid = one_of(self.kernel.cgroups.keys() & self.api.pods.keys(), data)
        self.kernel.end(uid)
        self.api.write_pod(replace(self.api.pods[uid], finished=True))
        if is_deleted:
            self.api.delete_pod(uid)

    @precondition(lambda self: self.api.pods)
    @rule(data=st.data())
    def a_pod_is_deleted(self, data: st.DataObject) -> None:
        """Delete by force a pod that has not finished. Its processes end later."""
        self.api.delete_pod(one_of(self.api.pods.keys(), data))

    @precondition(lambda self: self.kernel.cgroups.keys() - self.api.pods.keys())
    @rule(data=st.data())
    def a_deleted_pod_ends(self, data: st.DataObject) -> None:
        self.kernel.end(one_of(self.kernel.cgroups.keys() - self.api.pods.keys(), data))

    @precondition(lambda self: self.kernel.files)
    @rule(data=st.data())
    def a_file_is_removed(self, data: st.DataObject) -> None:
        del self.kernel.files[one_of(self.kernel.files.keys(), data)]

    @rule(name=st.sampled_from(NODES))
    def a_node_boots(self, name: str) -> None:
        """The Node shows the new boot, and then kubelet restarts the pods that have not ended."""
        if name in self.unreported:
            return
        self.agents[name] = None
        self.kernel.boot(name)
        self.api.write_boot_id(name)
        for uid, pod in self.api.pods.items():
            if pod.node == name and not pod.finished:
                self.kernel.start(uid, name)

    # Agents

    @rule(name=st.sampled_from(NODES))
    def an_agent_starts(self, name: str) -> None:
        if name not in self.unreported:
            self.agents[name] = Agent(name, self.api, self.kernel)

    @rule(name=st.sampled_from(NODES))
    def an_agent_is_killed(self, name: str) -> None:
        if name not in self.unreported:
            self.agents[name] = None

    @rule(name=st.sampled_from(NODES))
    def a_report_is_deleted(self, name: str) -> None:
        """The agent runs and remembers its report. No other program remembers the report."""
        read = self.controller.report_objects.get(name)
        if self.agents[name] is not None and read == self.api.reports.get(name):
            self.unreported.add(name)
            self.api.reports.pop(name, None)

    @rule(name=st.sampled_from(NODES))
    def an_agent_watches(self, name: str) -> None:
        if (agent := self.agents[name]) is not None:
            agent.watch()

    @rule(name=st.sampled_from(NODES))
    def an_agent_reports(self, name: str) -> None:
        if (agent := self.agents[name]) is not None:
            agent.report()
            self.unreported.discard(name)

    # Quotas

    @precondition(
        lambda self: (
            RED in self.api.quotas
            and not self.api.quotas[RED].terminating
            and not self.api.statuses[RED].pods
            and not self.api.statuses[RED].counter.pending
        )
    )
    @rule()
    def a_quota_is_deleted(self) -> None:
        self.api.quotas[RED] = replace(self.api.quotas[RED], terminating=True)

    def remove_finalizer(self) -> None:
        """Remove the finalizer, and so the quota, if nothing is charged to the deleted quota."""
        if RED not in self.api.quotas or not self.api.quotas[RED].terminating:
            return
        status = self.api.statuses[RED]
        if not (status.pods or status.retained or status.counter.reservations):
            del self.api.quotas[RED], self.api.statuses[RED]
            self.expected.root_inherits()

    # The controller

    @rule()
    def the_controller_sees_pods(self) -> None:
        self.controller.see_pods()

    @rule()
    def the_controller_lists_pods_again(self) -> None:
        self.controller.list_pods()

    @rule(listed=st.booleans())
    def the_controller_sees_nodes(self, listed: bool) -> None:
        if listed:
            self.controller.list_nodes()
        else:
            self.controller.see_nodes()

    @rule()
    def the_controller_sees_reports(self) -> None:
        self.controller.see_reports()

    @rule()
    def the_controller_sees_quotas(self) -> None:
        self.controller.see_quotas()

    @rule(first=st.integers(1, 3), writes_specs=st.booleans())
    def the_controller_counts(self, first: int, writes_specs: bool) -> None:
        count = self.controller.recount(first, writes_specs=writes_specs)
        self.expected.counted_pods |= {pod.uid for pod in count.pods}
        if first == 3:
            self.expected.counted_nodes |= self.controller.reports.keys()
        self.remove_finalizer()

    @rule()
    def the_controller_keeps_up(self) -> None:
        self.controller.see_pods()
        self.controller.see_nodes()
        self.controller.see_reports()
        self.controller.see_quotas()
        self.the_controller_counts(first=3, writes_specs=True)

    @rule()
    def a_pod_runs_and_is_counted(self) -> None:
        """The usual sequence, so that other rules have a pod to act on."""
        self.a_pod_is_created(("blue",))
        uid = f"pod-{self.serial}"
        self.api.write_pod(replace(self.api.pods[uid], node="n"))
        self.kernel.start(uid, "n", 1)
        self.the_controller_keeps_up()

    @rule()
    def another_controller_leads(self) -> None:
        if not self.unreported:
            self.controller = Controller(self.api)

    # Invariants

    @invariant()
    def every_charge_of_the_kernel_is_in_every_paying_quota(self) -> None:
        self.expected.check_charges()

    def all_programs_run(self) -> None:
        for name in NODES:
            if self.agents[name] is None:
                self.an_agent_starts(name)
            self.an_agent_watches(name)
            self.an_agent_reports(name)
        self.the_controller_keeps_up()
        self.expected.check_charges()

    def teardown(self) -> None:
        for _ in range(5):
            self.all_programs_run()
        self.expected.check_at_rest()


def one_of(uids: AbstractSet[str], data: st.DataObject) -> str:
    return data.draw(st.sampled_from(sorted(uids)))


TestCharges = Charges.TestCase
TestCharges.settings = settings(max_examples=300, stateful_step_count=60)
