"""The conditions of a HugeTLBNode."""

from __future__ import annotations

import pytest

from hugetlb_quota.agent.conditions import (
    charge_list_condition,
    complete_condition,
    ready_condition,
    room_condition,
)
from hugetlb_quota.api.node import LeftOut, MountStatus

NOW = "2026-11-22T12:00:00Z"


def mount(path: str, used: str, limit: str | None = None) -> MountStatus:
    return MountStatus(path=path, page_size="hugepages-2Mi", limit=limit, used=used)


@pytest.mark.parametrize(
    "roomy",
    [
        mount("/a", "62Mi", "64Mi"),
        mount("/a", "64Mi"),
        mount("/a", "0", "2Mi"),
    ],
    ids=["not yet full", "without a limit", "empty"],
)
def test_a_mount_with_room_is_no_problem(roomy: MountStatus) -> None:
    condition = room_condition([roomy], {}, NOW)
    assert (condition["status"], condition["reason"]) == ("True", "HaveRoom")


def test_says_that_a_full_mount_is_not_a_quota() -> None:
    full = mount("/mnt/huge", "64Mi", "64Mi")
    condition = room_condition([full, mount("/b", "2Mi")], {}, NOW)
    assert (condition["status"], condition["reason"]) == ("False", "Full")
    assert "/mnt/huge is full: it holds 64Mi and was mounted with size=64Mi" in condition["message"]
    assert "come from this limit and not from a quota" in condition["message"]
    assert "/b" not in condition["message"]


def test_says_why_the_charge_list_cannot_be_read() -> None:
    assert charge_list_condition("", {}, NOW)["status"] == "True"
    condition = charge_list_condition("This kernel has no BTF.", {}, NOW)
    assert (condition["status"], condition["reason"]) == ("False", "Unreadable")
    assert condition["message"].startswith("This kernel has no BTF. The charges of gone pods")


@pytest.mark.parametrize("before", [{"status": "True"}, {"type": "Ready"}, {"status": 7}])
def test_accepts_a_damaged_earlier_condition(before: dict[str, object]) -> None:
    assert room_condition([], before, NOW)["lastTransitionTime"] == NOW


def test_accepts_a_mount_larger_than_any_quantity_of_the_api() -> None:
    condition = room_condition([mount("/huge", "2Mi", "8Ei")], {}, NOW)
    assert condition["status"] == "True"


def test_a_message_is_text_and_short_enough_for_the_api() -> None:
    sentence = "a\udcff" + "b" * 40_000
    message = ready_condition((sentence,), {}, NOW)["message"]
    assert message.startswith("a\\udcffb")
    message.encode()
    assert len(message) < 32_768


@pytest.mark.parametrize(
    ("each", "parts"),
    [
        (1, ("Left out: 1 file (", "; the longest labels of 1 pod (", "; 1 pod (")),
        (2, ("Left out: 2 files (", "; the longest labels of 2 pods (", "; 2 pods (")),
    ],
)
def test_says_how_much_the_report_leaves_out(each: int, parts: tuple[str, ...]) -> None:
    message = complete_condition(LeftOut(files=each, labels=each, pods=each), {}, NOW)["message"]
    assert [part for part in parts if part not in message] == []
