"""A report that is too large for its object leaves out the least important parts."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.agent.fit import MOST, Fitted, fit, fit_labels
from hugetlb_quota.api.node import LeftOut, NodePodStatus

Json = dict[str, Any]


def row(uid: str, labels: dict[str, str] | None = None, **more: Any) -> Json:
    whole: Json = {"uid": uid, "namespace": "ns", "name": f"n-{uid}", "labels": labels or {}}
    whole |= {"cgroup": "", "live": False, "demand": {}, "charged": {"hugepages-2Mi": "4Mi"}}
    return {**whole, **more}


def file(path: str) -> Json:
    return {"path": path, "mount": "/dev/hugepages", "charged": "2Mi"}


def size(fitted: Fitted) -> int:
    return len(json.dumps([*fitted.pods, *fitted.files]))


def test_leaves_out_nothing_if_all_fits() -> None:
    pods, files = [row("a", {"l": "v"}), row("b", live=True)], [file("x")]
    assert fit(pods, files, ()) == Fitted(pods, files, LeftOut())


def test_leaves_out_the_smallest_files_first() -> None:
    pods, files = [row("a", {"l": "v"})], [file("large"), file("middle"), file("small")]
    most = sum(len(json.dumps(each)) + 2 for each in (*pods, *files)) - 1
    fitted = fit(pods, files, (), most)
    assert (fitted.pods, fitted.files) == (pods, files[:2])
    assert fitted.left_out == LeftOut(files=1)
    assert size(fitted) <= most


def test_leaves_out_the_demand_of_gone_pods_next() -> None:
    demand = {"hugepages-2Mi": "64Mi"}
    pods = [row("gone", {"l": "v"}, demand=demand), row("live", live=True, demand=demand)]
    fitted = fit(pods, (), (), most=len(json.dumps(pods)) - 60)
    assert ["demand" in each for each in fitted.pods] == [False, True]
    assert [each.get("labels") for each in fitted.pods] == [{"l": "v"}, None]
    assert fitted.left_out == LeftOut()


def test_leaves_out_the_longest_labels_of_the_pods_with_most_labels_next() -> None:
    much = {"app": "web", "long": "v" * 2000, "longer": "w" * 3000}
    fitted = fit([row("few", {"app": "db"}), row("much", much)], (), (), most=2000)
    assert [each["labels"] for each in fitted.pods] == [{"app": "db"}, {"app": "web"}]
    assert [each.get("labelsLeftOut") for each in fitted.pods] == [None, 2]
    assert fitted.left_out == LeftOut(labels=1)
    again = fit([row("much", {"app": "web", "x": "v" * 9000}, labelsLeftOut=2)], (), (), most=2000)
    assert again.pods[0]["labelsLeftOut"] == 3


def test_leaves_out_pods_that_were_never_reported_last() -> None:
    pods = [*(row(f"{number:02}") for number in range(20)), row("mirror", cgroup="hash")]
    reported = {"07", "13", "hash"}
    fitted = fit(pods, (), reported, most=1000)
    uids = {each["uid"] for each in fitted.pods}
    assert {"07", "13", "mirror"} < uids
    assert fitted.left_out == LeftOut(pods=21 - len(uids))
    assert 800 < size(fitted) <= 1000
    # A pod that comes later takes no room from the reported pods.
    later = [row("00-new"), *pods]
    assert fit(later, (), {*uids, "hash"}, most=1000).pods == fitted.pods


labels = st.dictionaries(st.text(max_size=40), st.text(max_size=2000), max_size=6)


@given(labels=labels, most=st.integers(0, 5000))
def test_keeps_the_shortest_labels(labels: dict[str, str], most: int) -> None:
    kept, left_out = fit_labels(labels, most)
    assert kept.items() <= labels.items()
    assert len(kept) + left_out == len(labels)
    lengths = sorted(len(key) + len(value) for key, value in labels.items())
    assert sum(lengths[: len(kept)]) <= most
    assert not left_out or sum(lengths[: len(kept) + 1]) > most


@given(
    rows=st.dictionaries(st.sampled_from("abcdefghij"), labels),
    reported=st.sets(st.sampled_from("abcdefghij")),
    most=st.integers(0, 8000),
)
def test_keeps_every_reported_pod_and_all_other_fields(
    rows: dict[str, dict[str, str]], reported: set[str], most: int
) -> None:
    pods = [row(uid, each) for uid, each in rows.items()]
    fitted = fit(pods, (), reported, most)
    kept = {each["uid"]: each for each in fitted.pods}
    assert reported & rows.keys() <= kept.keys()
    assert fitted.left_out.pods == len(rows) - len(kept)
    for uid, each in kept.items():
        whole = NodePodStatus.model_validate(each)
        assert whole == NodePodStatus.model_validate(
            {**row(uid, dict(whole.labels)), "labelsLeftOut": whole.labels_left_out}
        )
        assert len(whole.labels) + (whole.labels_left_out or 0) == len(rows[uid])
    if not reported:
        assert not pods or size(fitted) <= max(most, 2)


def test_thousands_of_gone_pods_with_many_labels_fit() -> None:
    many = {f"label-{number}": "v" * 60 for number in range(20)}
    pods = [row(f"{number:036}", many) for number in range(3000)]
    fitted = fit(pods, [file("x")], ())
    assert size(fitted) <= MOST
    assert len(fitted.pods) > 2500
