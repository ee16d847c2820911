"""What the informers tell becomes who is governed, by whom, for how much."""

from dataclasses import replace

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.agent.governance import Governance, project_governor
from hugetlb_quota.kube.pods import Container, Pod
from hugetlb_quota.page_size import PageSize

MIB = 1 << 20
SIZE = PageSize(2 * MIB)


def megabytes(amount: int) -> Charge:
    return Charge({SIZE: amount * MIB})


def pod(uid: str = "u", namespace: str = "ns", demand: int = 8, **labels: str) -> Pod:
    return Pod(uid, namespace, f"name-{uid}", 7, labels, demand=megabytes(demand))


def quota(name: str = "q", namespace: str = "ns", **labels: str) -> dict[str, object]:
    spec = {"podSelector": {"matchLabels": labels}} if labels else {}
    return {"metadata": {"namespace": namespace, "name": name}, "spec": spec}


def governance(*things: Pod | dict[str, object]) -> Governance:
    known = Governance()
    for thing in things:
        if isinstance(thing, Pod):
            known.pod_changed(None, thing, 1)
        else:
            known.quota_changed(None, project_governor(thing, "n"), 1)
    return known


def test_a_pod_is_governed_by_the_quotas_of_its_namespace_that_select_it() -> None:
    web = pod(app="web")
    known = governance(
        quota("b"), quota("a", app="web"), quota("c", app="db"), quota("d", "other"), web
    )
    assert known.governors(web) == (QuotaKey("ns", "a"), QuotaKey("ns", "b"))


def test_its_allowance_is_its_demand_and_that_of_the_containers_that_run() -> None:
    containers = (Container("a", "1f", megabytes(6)), Container("b", None, megabytes(2)))
    known = governance(quota(), replace(pod(), containers=containers, pod_level=frozenset({SIZE})))
    allowance = known.allowance("u")
    assert allowance is not None
    assert allowance.demand == megabytes(8)
    assert allowance.containers == {"1f": megabytes(6)}
    assert allowance.pod_level == {SIZE}


def test_a_pod_that_nothing_governs_and_one_that_is_unknown_have_none() -> None:
    known = governance(quota(namespace="other"), pod())
    assert known.allowance("u") is None
    assert known.allowance("unknown") is None


def test_it_follows_the_quotas() -> None:
    known = governance(quota(app="web"), pod(app="web"))
    before, after = project_governor(quota(app="web"), "n"), project_governor(quota(app="db"), "n")
    known.quota_changed(before, after, 2)
    assert known.allowance("u") is None
    known.quota_changed(after, before, 3)
    assert known.allowance("u") is not None
    known.quota_changed(before, None, 4)
    assert known.allowance("u") is None


def test_a_static_pod_is_found_by_the_hash_in_its_cgroups_name() -> None:
    static = replace(pod("api-uid"), static_hash="0123abcd")
    known = governance(quota(), static)
    assert static.cgroup_uid == "0123abcd"
    assert known.allowance("0123abcd") is not None
    assert known.allowance("api-uid") is None


def test_an_annotation_does_not_get_a_pod_into_anothers_cgroup() -> None:
    """A user can write the annotations of a static pod on a pod of his own."""
    victim, thief = pod("victim", demand=64), replace(pod("thief"), static_hash="victim")
    allowance = governance(quota(), victim, thief).allowance("victim")
    assert allowance is not None
    assert allowance.demand == megabytes(64)


def test_what_is_known_of_a_pod_is_told_by_its_cgroup() -> None:
    static, gone = replace(pod("api-uid"), static_hash="0123abcd"), pod("gone", namespace="none")
    known = governance(quota(), static, replace(pod("over"), finished=True), gone)
    known.pod_changed(gone, None, 9)
    told = known.known()
    assert {cgroup: (each.quotas, each.over) for cgroup, each in told.items()} == {
        "0123abcd": (("ns/q",), False),
        "over": (("ns/q",), True),
        "gone": ((), True),
    }
    assert all(known.known_as(cgroup) == {cgroup: each} for cgroup, each in told.items())
    assert known.known_as("api-uid") == known.known_as("unknown") == {}


def test_a_deleted_pod_keeps_its_limits_until_it_is_forgotten() -> None:
    known = governance(quota(), pod())
    known.pod_changed(pod(), None, 9)
    assert known.allowance("u") is not None
    assert list(known.deleted()) == [pod()]
    assert known.knows("u")
    known.forget("u")
    assert known.allowance("u") is None
    assert not known.knows("u")


def test_a_static_pod_that_is_mirrored_anew_is_not_forgotten_with_its_old_mirror() -> None:
    old, new = (replace(pod(uid), static_hash="0123abcd") for uid in ("old", "new"))
    known = governance(quota(), old)
    known.pod_changed(old, None, 2)
    known.pod_changed(None, new, 3)
    known.forget("old")
    assert known.allowance("0123abcd") is not None


@pytest.mark.parametrize(
    ("old", "new", "ends"),
    [
        (pod(), None, 1),
        (pod(), replace(pod(), finished=True), 1),
        (replace(pod(), finished=True), None, 1),
        (pod(), replace(pod(), deletion=True), 0),
        (None, pod(), 0),
        (pod(demand=0), None, 0),
    ],
)
def test_ends_of_pods_with_huge_pages_are_counted(
    old: Pod | None, new: Pod | None, ends: int
) -> None:
    known = Governance()
    if old is not None:
        known.pod_changed(None, old, 1)
    known.pod_changed(old, new, 2)
    assert known.ends == ends


def test_who_listens_hears_of_the_cgroup() -> None:
    known, heard = Governance(), list[str]()
    known.on_pod = heard.append
    known.on_quotas = lambda: heard.append("quotas")
    known.pod_changed(None, replace(pod(), static_hash="0123abcd"), 1)
    known.quota_changed(None, project_governor(quota(), "n"), 2)
    assert heard == ["0123abcd", "quotas"]


def test_a_quotas_status_is_no_change() -> None:
    raw = quota()
    assert project_governor(raw, "n") == project_governor({**raw, "status": {"used": {}}}, "n")


def entry(**changes: object) -> dict[str, object]:
    whole: dict[str, object] = {
        "uid": "u",
        "pod": "ns/gone",
        "node": "n",
        "charge": {"hugepages-2Mi": "8Mi"},
        "quotas": ["ns/q"],
        "cgroup": "u",
    }
    return whole | changes


def test_the_pods_that_this_node_missed_are_taken_from_all_quotas_once() -> None:
    known = Governance()
    for name, told in {
        "q": [entry(quotas=["ns/q", "ns/r"]), entry(uid="other", node="other")],
        "r": [entry(quotas=["ns/q", "ns/r"])],
    }.items():
        raw = {**quota(name), "status": {"unreported": told}}
        known.quota_changed(None, project_governor(raw, "n"), 1)
    (missed,) = known.unreported()
    assert missed.quotas == {QuotaKey("ns", "q"), QuotaKey("ns", "r")}
    for name in ("q", "r"):
        raw = {**quota(name), "status": {"unreported": [entry()]}}
        known.quota_changed(project_governor(raw, "n"), project_governor(quota(name), "n"), 2)
    assert known.unreported() == ()


@pytest.mark.parametrize(
    "broken",
    [{"pod": ""}, {"quotas": []}, {"charge": {"hugepages-2Mi": "many"}}, {"cgroup": None}],
)
def test_an_entry_that_cannot_be_understood_keeps_no_other_from_its_node(
    broken: dict[str, object],
) -> None:
    raw = {**quota(), "status": {"unreported": [entry(uid="v", **broken), entry()]}}
    assert [each.uid for each in project_governor(raw, "n").unreported] == ["u"]


@pytest.mark.parametrize(
    "selector", ["all", {"matchLabels": 3}, {"matchExpressions": [{"key": "a"}]}]
)
def test_a_selector_that_cannot_be_understood_selects_every_pod(selector: object) -> None:
    raw = {"metadata": {"namespace": "ns", "name": "q"}, "spec": {"podSelector": selector}}
    assert governance(raw, pod(app="web")).allowance("u") is not None


def test_what_a_quota_that_goes_retains_is_the_next_ones_above_that_stays() -> None:
    def under(name: str, parent: str | None, *, going: bool = False) -> dict[str, object]:
        metadata = {"namespace": "ns", "name": name}
        if going:
            metadata["deletionTimestamp"] = "2026-11-22T12:00:00Z"
        ref = {"parentRef": {"namespace": "ns", "name": parent}} if parent else {}
        return {"metadata": metadata, "spec": ref}

    known = governance(
        under("root", None),
        under("mid", "root", going=True),
        under("leaf", "mid", going=True),
        under("top", None, going=True),
        under("lost", "nowhere", going=True),
        under("stays", "mid"),
    )
    assert known.heirs() == {
        "ns/mid": "ns/root",
        "ns/leaf": "ns/root",
        "ns/top": None,
        "ns/lost": None,
    }
