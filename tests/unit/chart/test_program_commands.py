"""Tests start the chart's commands, with other addresses, ports and files."""

from __future__ import annotations

import sys

import pytest

from tests.kube.programs import rewritten

SHIPPED = ("python", "-m", "hugetlb_quota.agent", "--node-name=$(NODE_NAME)", "--bind=*")


def test_fills_in_variables_as_kubelet_does() -> None:
    assert rewritten(SHIPPED, {}, {"NODE_NAME": "n1"}) == [
        sys.executable,
        "-m",
        "hugetlb_quota.agent",
        "--node-name=n1",
        "--bind=*",
    ]


def test_replaces_the_value_of_a_flag() -> None:
    changed = rewritten(SHIPPED, {"--bind": "127.0.0.1"}, {"NODE_NAME": "n1"})
    assert changed[-1] == "--bind=127.0.0.1"
    assert len(changed) == len(SHIPPED)


def test_refuses_a_flag_that_the_command_lacks() -> None:
    with pytest.raises(LookupError, match="has --port 0 times"):
        rewritten(SHIPPED, {"--port": "1"}, {"NODE_NAME": "n1"})


def test_refuses_a_variable_without_a_value() -> None:
    with pytest.raises(KeyError, match="NODE_NAME"):
        rewritten(SHIPPED, {}, {})
