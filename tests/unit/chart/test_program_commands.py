"""What tests start is the shipped command: only addresses, ports and files are changed."""

from __future__ import annotations

import sys

import pytest

from tests.kube.programs import rewritten

SHIPPED = ("python", "-m", "hugetlb_quota.agent", "--node-name=$(NODE_NAME)", "--bind=*")


def test_fills_in_what_kubelet_would() -> None:
    assert rewritten(SHIPPED, {}, {"NODE_NAME": "n1"}) == [
        sys.executable,
        "-m",
        "hugetlb_quota.agent",
        "--node-name=n1",
        "--bind=*",
    ]


def test_replaces_the_value_of_a_shipped_flag() -> None:
    changed = rewritten(SHIPPED, {"--bind": "127.0.0.1"}, {"NODE_NAME": "n1"})
    assert changed[-1] == "--bind=127.0.0.1"
    assert len(changed) == len(SHIPPED)


def test_refuses_a_flag_that_is_not_shipped() -> None:
    with pytest.raises(LookupError, match="has --port 0 times"):
        rewritten(SHIPPED, {"--port": "1"}, {"NODE_NAME": "n1"})


def test_refuses_a_variable_that_nothing_fills() -> None:
    with pytest.raises(KeyError, match="NODE_NAME"):
        rewritten(SHIPPED, {}, {})
