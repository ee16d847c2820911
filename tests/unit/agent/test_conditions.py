"""What a node's conditions tell of mounts that have a limit of their own."""

from __future__ import annotations

import pytest

from hugetlb_quota.agent.conditions import room_condition

NOW = "2026-11-22T12:00:00Z"


@pytest.mark.parametrize(
    "mount",
    [
        {"path": "/a", "used": "62Mi", "limit": "64Mi"},
        {"path": "/a", "used": "64Mi"},
        {"path": "/a", "used": "0", "limit": "2Mi"},
    ],
    ids=["not yet full", "without a limit", "empty"],
)
def test_a_mount_with_room_is_not_told_of(mount: dict[str, str]) -> None:
    condition = room_condition([mount], {}, NOW)
    assert (condition["status"], condition["reason"]) == ("True", "HaveRoom")


def test_a_full_mount_is_told_apart_from_a_quota() -> None:
    full = {"path": "/mnt/huge", "used": "64Mi", "limit": "64Mi"}
    condition = room_condition([full, {"path": "/b", "used": "2Mi"}], {}, NOW)
    assert (condition["status"], condition["reason"]) == ("False", "Full")
    assert "/mnt/huge is full: it holds 64Mi and was mounted with size=64Mi" in condition["message"]
    assert "on that and on no quota" in condition["message"]
    assert "/b" not in condition["message"]
