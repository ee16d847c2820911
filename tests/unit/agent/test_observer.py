"""What a snapshot claims, against every order in which pods and cgroups can go."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.governance import Governance, project_governor
from hugetlb_quota.agent.ledger import Ledger
from hugetlb_quota.agent.memory import Memory
from hugetlb_quota.agent.observe import Observer
from hugetlb_quota.agent.track import Tracker
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.node import cgroup as node_cgroup
from hugetlb_quota.node import kubepods
from hugetlb_quota.node.host import HostRoot, HostUnreadable
from hugetlb_quota.page_size import PageSize

MIB = 1 << 20
SIZE = PageSize(2 * MIB)
BOOT = "6687db17"


def pod(uid: str = "u", demand: int = 8, namespace: str = "ns") -> Pod:
    return Pod(uid, namespace, f"name-{uid}", 7, {}, demand=Charge({SIZE: demand * MIB}))


class Node:
    """A host of plain files, and what the API has told of its pods."""

    def __init__(self, root: Path) -> None:
        self.cgroup2 = root / "sys/fs/cgroup"
        (self.cgroup2 / "kubepods").mkdir(parents=True)
        (self.cgroup2 / "cgroup.controllers").write_text("hugetlb\n")
        boot = root / "proc/sys/kernel/random/boot_id"
        boot.parent.mkdir(parents=True)
        boot.write_text(f"{BOOT}\n")
        self.governance = Governance()
        quota = {"metadata": {"namespace": "ns", "name": "q"}, "spec": {}}
        self.governance.quota_changed(None, project_governor(quota, "n"), 1)
        self.since = self.version = 0
        self.host = HostRoot(root)
        self.begin()

    def begin(self) -> None:
        """Begin with what is remembered."""
        self.memory = Memory.open(self.host.path / "state", BOOT)
        tracker = Tracker(kubepods.parents(self.cgroup2, None), [SIZE], Ledger(self.memory))
        self.observer = Observer(
            *(self.host, self.cgroup2, tracker, self.governance),
            seen_since=lambda: self.since,
            seen_up_to=lambda: self.version,
        )

    def starts_anew(self) -> None:
        """As after kill -9."""
        self.memory.close()
        self.begin()

    def ask_about(self, *uids: str, demand: int = 8, cgroup: str = "") -> None:
        """The controller asks about pods that ended while no agent ran."""
        told = [
            {
                "uid": uid,
                "pod": f"ns/name-{uid}",
                "node": "n",
                "charge": {"hugepages-2Mi": f"{demand}Mi"},
                "quotas": ["ns/q", "ns/r"],
                "cgroup": cgroup or uid,
            }
            for uid in uids
        ]
        for name in ("q", "r"):
            metadata = {"namespace": "ns", "name": name}
            raw = {"metadata": metadata, "spec": {}, "status": {"unreported": told}}
            self.governance.quota_changed(None, project_governor(raw, "n"), 2)

    def tell(self, old: Pod | None, new: Pod | None) -> None:
        self.version += 1
        self.governance.pod_changed(old, new, self.version)

    def make_cgroup(self, uid: str, reserved: int = 0, faulted: int = 0) -> Path:
        path = self.cgroup2 / f"kubepods/pod{uid}"
        path.mkdir()
        (path / "hugetlb.2MB.rsvd.current").write_text(f"{reserved * MIB}\n")
        (path / "hugetlb.2MB.current").write_text(f"{faulted * MIB}\n")
        (path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
        return path

    def kubepods_total(self, reserved: int) -> None:
        """What kubepods counts, of pods that are gone too."""
        for file in ("rsvd.current", "current"):
            path = self.cgroup2 / f"kubepods/hugetlb.2MB.{file}"
            path.write_text(f"{reserved * MIB}\n")

    def retained(self) -> dict[str, str]:
        return {
            ",".join(row["quotas"]): row["charge"]["hugepages-2Mi"]
            for row in self.observer.snapshot().retained
        }

    def listed(self) -> list[str]:
        return [entry["uid"] for entry in self.observer.snapshot().pods]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.memory.close()


def test_an_entry_has_all_there_is_to_say(node: Node) -> None:
    node.tell(None, pod())
    node.make_cgroup("u", reserved=6, faulted=4)
    snapshot = node.observer.snapshot()
    assert snapshot.pods == (
        {
            "uid": "u",
            "namespace": "ns",
            "name": "name-u",
            "quotas": ["ns/q"],
            "charge": {"hugepages-2Mi": "8Mi"},
            "inUse": {"hugepages-2Mi": "6Mi"},
        },
    )
    assert snapshot.pods_resource_version == 1


def test_in_use_is_the_larger_of_reserved_and_faulted(node: Node) -> None:
    node.tell(None, pod())
    node.make_cgroup("u", reserved=0, faulted=4)  # MAP_NORESERVE
    assert node.observer.snapshot().pods[0]["inUse"] == {"hugepages-2Mi": "4Mi"}


def test_a_pod_whose_cgroup_is_not_made_yet_is_listed(node: Node) -> None:
    node.tell(None, pod())
    assert node.listed() == ["u"]


def test_a_pod_whose_cgroup_is_gone_is_listed_until_its_end_is_seen(node: Node) -> None:
    node.tell(None, pod())
    shutil.rmtree(node.make_cgroup("u"))
    assert node.listed() == ["u"]
    node.tell(pod(), replace(pod(), deletion=True))
    assert node.listed() == ["u"]
    node.tell(pod(), None)
    assert node.listed() == []
    assert node.observer.snapshot().pods_resource_version == 3


@pytest.mark.parametrize("end", [None, replace(pod(), finished=True)])
def test_a_pod_whose_end_was_seen_is_listed_until_its_cgroup_is_gone(
    node: Node, end: Pod | None
) -> None:
    node.tell(None, pod())
    cgroup = node.make_cgroup("u", reserved=6)
    node.tell(pod(), end)
    for _ in range(2):
        (entry,) = node.observer.snapshot().pods
        assert entry["inUse"] == {"hugepages-2Mi": "6Mi"}
    shutil.rmtree(cgroup)
    assert node.listed() == []


def test_a_pod_that_came_and_went_between_two_snapshots_is_listed_with_its_cgroup(
    node: Node,
) -> None:
    node.make_cgroup("u")
    node.tell(None, pod())
    node.tell(pod(), None)
    assert node.listed() == ["u"]


def test_the_cgroups_are_looked_at_after_what_the_api_has_told(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that starts and ends during the snapshot must not be missed: the version says so."""
    seen = kubepods.pods
    node.tell(None, pod())

    def look(parents: object) -> Any:
        found = list(seen(parents))  # type: ignore[arg-type]
        if not (node.cgroup2 / "kubepods/podu").exists():
            node.make_cgroup("u")
            node.tell(pod(), None)
        return found

    monkeypatch.setattr(kubepods, "pods", look)
    snapshot = node.observer.snapshot()
    # Whatever it lists, it does not claim to have seen the end.
    assert snapshot.pods_resource_version == 1
    monkeypatch.setattr(kubepods, "pods", seen)
    assert node.listed() == ["u"]


def test_pods_that_no_quota_governs_or_that_have_no_huge_pages_are_not_listed(node: Node) -> None:
    node.tell(None, pod("other", namespace="other"))
    node.tell(None, pod("none", demand=0))
    node.make_cgroup("other", reserved=4)
    node.make_cgroup("none")
    assert node.listed() == []


def test_a_governed_pod_that_asks_for_nothing_and_holds_something_is_listed(node: Node) -> None:
    """Its pages were there before the quota was."""
    node.tell(None, replace(pod(), demand=Charge()))
    node.make_cgroup("u", reserved=4)
    assert node.listed() == ["u"]


def test_a_static_pod_is_there_while_the_cgroup_of_its_hash_is(node: Node) -> None:
    static = replace(pod(), static_hash="0123abcd")
    node.tell(None, static)
    cgroup = node.make_cgroup("0123abcd", reserved=4)
    node.tell(static, None)
    assert node.observer.snapshot().pods[0]["inUse"] == {"hugepages-2Mi": "4Mi"}
    shutil.rmtree(cgroup)
    assert node.listed() == []


def test_the_version_never_goes_back(node: Node) -> None:
    node.tell(None, pod())
    node.version = 41
    assert node.observer.snapshot().pods_resource_version == 41
    node.version = 0  # a list is under way
    assert node.observer.snapshot().pods_resource_version == 41


def entry(uid: str) -> dict[str, Any]:
    charge = {"hugepages-2Mi": "8Mi"}
    return {"uid": uid, "namespace": "ns", "name": "old", "quotas": ["ns/q"], "charge": charge}


def test_what_the_last_report_knew_is_carried_over_while_its_cgroup_is_there(node: Node) -> None:
    """The pod was deleted while no agent ran, and its processes are still ending."""
    node.observer.carry_over({"bootID": BOOT, "pods": [entry("ending"), entry("ended")]})
    cgroup = node.make_cgroup("ending", reserved=2)
    assert node.observer.snapshot().pods == (
        {**entry("ending"), "inUse": {"hugepages-2Mi": "2Mi"}},
    )
    shutil.rmtree(cgroup)
    assert node.listed() == []


def test_what_the_api_tells_goes_before_what_is_carried_over(node: Node) -> None:
    node.observer.carry_over({"bootID": BOOT, "pods": [entry("u")]})
    node.make_cgroup("u")
    node.tell(None, pod())
    (listed,) = node.observer.snapshot().pods
    assert listed["name"] == "name-u"
    node.tell(pod(), None)
    assert node.listed() == ["u"]


def test_nothing_is_carried_over_a_boot(node: Node) -> None:
    node.observer.carry_over({"bootID": "another", "pods": [entry("u")]})
    node.make_cgroup("u")
    assert node.listed() == []


def test_pages_of_a_pod_that_nothing_is_known_of_keep_its_charge(node: Node) -> None:
    """It came and was deleted while no agent ran: its cgroup's name is all there is."""
    cgroup = node.make_cgroup("unknown", reserved=2)
    node.make_cgroup("empty")
    assert node.observer.snapshot().pods == (
        {
            "uid": "unknown",
            "namespace": "",
            "name": "",
            "quotas": [],
            "charge": {},
            "inUse": {"hugepages-2Mi": "2Mi"},
        },
    )
    shutil.rmtree(cgroup)
    assert node.listed() == []


@pytest.mark.parametrize("last", [None, {}, {"bootID": BOOT}])
def test_there_may_be_no_last_report(node: Node, last: dict[str, Any] | None) -> None:
    node.observer.carry_over(last)
    assert node.listed() == []


def test_that_cgroups_cannot_be_seen_is_not_that_they_are_gone(node: Node) -> None:
    node.tell(None, pod())
    node.make_cgroup("u")
    node.tell(pod(), None)
    hidden = node.cgroup2.rename(node.cgroup2.with_name("elsewhere"))
    with pytest.raises(HostUnreadable):
        node.observer.snapshot()
    hidden.rename(node.cgroup2)
    assert node.listed() == ["u"]


def test_what_is_left_is_not_counted_beside_a_pod_that_is_listed_still(node: Node) -> None:
    """Its cgroup is gone, and the API has not told of its end yet: its charge has it all."""
    node.tell(None, pod(demand=4))
    cgroup = node.make_cgroup("u", reserved=6)
    node.kubepods_total(6)
    assert (node.listed(), node.retained()) == (["u"], {})
    shutil.rmtree(cgroup)
    assert (node.listed(), node.retained()) == (["u"], {"ns/q": "2Mi"})  # beyond its charge
    node.tell(pod(demand=4), None)
    assert (node.listed(), node.retained()) == ([], {"ns/q": "6Mi"})


def test_what_is_left_counts_where_it_was_though_the_pod_is_listed_elsewhere(node: Node) -> None:
    """Its cgroup is gone, its end was not seen yet, and its labels moved it meanwhile."""
    for name in ("q", "r"):
        metadata = {"namespace": "ns", "name": name}
        raw = {"metadata": metadata, "spec": {"podSelector": {"matchLabels": {"under": name}}}}
        node.governance.quota_changed(None, project_governor(raw, "n"), 2)
    before, after = (replace(pod(demand=8), labels={"under": name}) for name in ("q", "r"))
    node.tell(None, before)
    cgroup = node.make_cgroup("u", reserved=6)
    node.kubepods_total(6)
    assert (node.listed(), node.retained()) == (["u"], {})
    shutil.rmtree(cgroup)
    assert (node.listed(), node.retained()) == (["u"], {})
    node.tell(before, after)
    assert (node.listed(), node.retained()) == (["u"], {"ns/q": "6Mi"})
    node.tell(after, None)
    assert (node.listed(), node.retained()) == ([], {"ns/q": "6Mi"})


def test_a_cgroup_made_anew_counts_beside_what_the_former_left(node: Node) -> None:
    node.tell(None, pod())
    cgroup = node.make_cgroup("u", reserved=6)
    node.kubepods_total(6)
    assert node.retained() == {}
    shutil.rmtree(cgroup)
    assert node.retained() == {}
    node.make_cgroup("u", reserved=2)
    node.kubepods_total(8)
    assert (node.listed(), node.retained()) == (["u"], {"ns/q": "6Mi"})


def test_a_pod_stays_while_it_cannot_be_told_what_it_left(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody reserves and gives back all the time, and its end was missed."""
    node.tell(None, pod())
    node.tell(None, pod("busy"))
    node.kubepods_total(4)
    cgroup, busy = node.make_cgroup("u", reserved=2), node.make_cgroup("busy", reserved=2)
    node.observer.snapshot()
    read, turns = node_cgroup.read_use, iter(range(10**6))

    def restless(path: Path, size: PageSize) -> node_cgroup.Use:
        return node_cgroup.Use(next(turns), 0) if path == busy else read(path, size)

    monkeypatch.setattr(node_cgroup, "read_use", restless)
    shutil.rmtree(cgroup)
    node.tell(pod(), None)
    node.kubepods_total(8)
    assert (node.listed(), node.retained()) == (["busy", "u"], {})
    monkeypatch.setattr(node_cgroup, "read_use", read)
    assert (node.listed(), node.retained()) == (["busy"], {"ns/q": "6Mi"})


def test_one_that_was_seen_empty_goes_all_the_same(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.tell(None, pod())
    node.tell(None, pod("busy"))
    node.kubepods_total(8)
    cgroup, busy = node.make_cgroup("u", reserved=6), node.make_cgroup("busy", reserved=2)
    node.observer.snapshot()
    (cgroup / "cgroup.events").write_text("populated 0\n")
    node.observer.snapshot()
    read, turns = node_cgroup.read_use, iter(range(10**6))

    def restless(path: Path, size: PageSize) -> node_cgroup.Use:
        return node_cgroup.Use(next(turns), 0) if path == busy else read(path, size)

    monkeypatch.setattr(node_cgroup, "read_use", restless)
    shutil.rmtree(cgroup)
    node.tell(pod(), None)
    assert (node.listed(), node.retained()) == (["busy"], {"ns/q": "6Mi"})


def test_what_pods_of_before_left_is_told_and_charged_to_none(node: Node) -> None:
    node.kubepods_total(6)
    node.tell(None, replace(pod(), finished=True))
    snapshot = node.observer.snapshot()
    assert snapshot.retained == ({"quotas": [], "charge": {"hugepages-2Mi": "6Mi"}},)
    (doubt,) = snapshot.doubts
    assert "6Mi of hugepages-2Mi are left in files by pods that nothing is known of" in doubt


def test_an_empty_cgroup_of_a_pod_that_has_not_started_is_no_end(node: Node) -> None:
    """It runs and leaves something between two looks: the kernel's total is what tells."""
    node.tell(None, pod())
    cgroup = node.make_cgroup("u")
    (cgroup / "cgroup.events").write_text("populated 0\n")
    node.observer.snapshot()
    shutil.rmtree(cgroup)
    node.kubepods_total(4)
    node.tell(pod(), None)
    assert (node.listed(), node.retained()) == ([], {"ns/q": "4Mi"})
    assert node.observer.snapshot().doubts == ()


def test_a_pod_that_ended_before_the_api_told_of_it_is_named_all_the_same(node: Node) -> None:
    node.observer.snapshot()
    cgroup = node.make_cgroup("u", reserved=4)
    node.kubepods_total(4)
    node.observer.snapshot()
    node.tell(None, pod())
    shutil.rmtree(cgroup)
    node.tell(pod(), None)
    assert (node.listed(), node.retained()) == ([], {"ns/q": "4Mi"})


def settled(node: Node) -> tuple[tuple[str, ...], dict[str, str]]:
    snapshot = node.observer.snapshot()
    return snapshot.settled, {
        ",".join(row["quotas"]): row["charge"]["hugepages-2Mi"] for row in snapshot.retained
    }


@pytest.mark.parametrize("stray_first", [True, False])
def test_what_is_stray_was_left_by_the_pod_that_the_controller_asks_about(
    node: Node, stray_first: bool
) -> None:
    node.observer.snapshot()
    node.kubepods_total(6)
    if stray_first:
        assert settled(node) == ((), {"": "6Mi"})
    node.ask_about("u")
    for _ in range(2):
        assert settled(node) == (("u",), {"ns/q,ns/r": "6Mi"})
    (doubt,) = node.observer.snapshot().doubts
    assert "6Mi of hugepages-2Mi are taken to be left by ns/name-u" in doubt
    node.kubepods_total(0)
    assert settled(node) == (("u",), {})
    assert node.observer.snapshot().doubts == ()


def test_it_is_found_at_the_very_first_look_too(node: Node) -> None:
    node.kubepods_total(6)
    node.ask_about("u")
    assert settled(node) == (("u",), {"ns/q,ns/r": "6Mi"})


def test_no_pod_is_taken_to_have_left_more_than_it_asked_for(node: Node) -> None:
    node.observer.snapshot()
    node.kubepods_total(10)
    node.ask_about("u", demand=4)
    assert settled(node) == (("u",), {"ns/q,ns/r": "4Mi", "": "6Mi"})
    node.ask_about("u", "v", demand=4)
    assert settled(node) == (("u", "v"), {"ns/q,ns/r": "8Mi", "": "2Mi"})


def test_an_agent_that_was_killed_after_it_settled_says_the_same(node: Node) -> None:
    node.observer.snapshot()
    node.kubepods_total(6)
    node.ask_about("u")
    before = settled(node)
    node.starts_anew()
    assert settled(node) == before
    assert "taken to be left" in node.observer.snapshot().doubts[0]


def test_one_that_left_nothing_is_not_taken_later_for_the_one_who_left_what_is_found(
    node: Node,
) -> None:
    node.observer.snapshot()
    node.ask_about("u")
    assert settled(node) == (("u",), {})
    node.starts_anew()
    node.kubepods_total(4)
    assert settled(node) == (("u",), {"": "4Mi"})


def test_one_whose_cgroup_is_there_still_is_listed_by_name_and_settled_when_it_has_gone(
    node: Node,
) -> None:
    node.observer.snapshot()
    node.kubepods_total(2)
    cgroup = node.make_cgroup("u", reserved=2)
    assert node.observer.snapshot().pods[0]["quotas"] == []
    node.ask_about("u")
    (listed,) = node.observer.snapshot().pods
    assert (listed["name"], listed["quotas"]) == ("name-u", ["ns/q", "ns/r"])
    assert settled(node) == ((), {})
    shutil.rmtree(cgroup)
    assert settled(node) == (("u",), {"ns/q,ns/r": "2Mi"})
    assert node.observer.snapshot().doubts == ()  # that one was seen


def test_one_whose_cgroup_went_before_it_had_a_name_gets_it_afterwards(node: Node) -> None:
    node.observer.snapshot()
    node.kubepods_total(2)
    cgroup = node.make_cgroup("u", reserved=2)
    node.observer.snapshot()
    shutil.rmtree(cgroup)
    assert settled(node) == ((), {"": "2Mi"})
    node.ask_about("u")
    assert settled(node) == (("u",), {"ns/q,ns/r": "2Mi"})


def test_what_the_api_has_told_of_a_pod_is_not_replaced_by_what_the_controller_tells(
    node: Node,
) -> None:
    node.tell(None, pod())
    cgroup = node.make_cgroup("u", reserved=2)
    node.kubepods_total(2)
    node.observer.snapshot()
    node.starts_anew()  # the pod was deleted meanwhile: of what the API told it has this alone
    node.governance.pod_changed(pod(), None, 2)
    node.governance.forget("u")
    node.ask_about("u")
    assert node.observer.snapshot().settled == ()
    shutil.rmtree(cgroup)
    assert settled(node) == (("u",), {"ns/q": "2Mi"})
    assert node.observer.snapshot().doubts == ()


def test_a_static_pod_is_settled_by_the_name_of_its_cgroup(node: Node) -> None:
    node.observer.snapshot()
    cgroup = node.make_cgroup("0a1b", reserved=2)
    node.kubepods_total(2)
    node.ask_about("mirror", cgroup="0a1b")
    assert node.listed() == ["mirror"]
    assert settled(node) == ((), {})
    # Kubelet mirrors it anew: its cgroup goes on, and is charged under the new UID.
    anew = replace(pod("anew"), static_hash="0a1b")
    node.tell(None, anew)
    assert node.listed() == ["anew"]
    assert settled(node) == (("mirror",), {})
    shutil.rmtree(cgroup)
    node.tell(anew, None)
    assert settled(node) == (("mirror",), {"ns/q,ns/r": "2Mi"})


def test_one_that_was_listed_and_ran_while_no_agent_did_is_known_from_the_last_report(
    node: Node,
) -> None:
    """The agent had not seen its cgroup when it was killed."""
    node.observer.snapshot()
    node.observer.carry_over({"bootID": BOOT, "pods": [entry("u")]})
    node.kubepods_total(6)
    assert settled(node) == ((), {"ns/q": "6Mi"})
    assert node.listed() == []
