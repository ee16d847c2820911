"""What ``uninstall`` says before and after, and whom it takes for a leader."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest

from hugetlb_quota.api.quota import FINALIZER
from hugetlb_quota.kube.lease import RETRY_PERIOD
from hugetlb_quota.plugin import commands, uninstall
from hugetlb_quota.plugin.problem import Problem
from hugetlb_quota.plugin.table import Screen
from hugetlb_quota.plugin.uninstall import Left

Json = dict[str, Any]


def quota(name: str, *finalizers: str, deleting: bool = False) -> Json:
    namespace, _, own = name.partition("/")
    metadata: Json = {"namespace": namespace, "name": own, "finalizers": list(finalizers)}
    if deleting:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return {"metadata": metadata, "spec": {}}


def lease(version: str, holder: str = "a") -> Json:
    metadata = {"namespace": "system", "name": "lease", "resourceVersion": version}
    return {"metadata": metadata, "spec": {"holderIdentity": holder}}


LEFT = Left(
    quotas=[
        quota("a/stays", FINALIZER, "other"),
        quota("a/goes", FINALIZER, deleting=True),
        quota("gone/x", FINALIZER, deleting=True),
        quota("a/others", "other"),
    ],
    namespaces=["gone"],
    crds=["hugetlbquotas.hugetlb.dev"],
    webhooks=["hooks"],
)


def test_who_renews_its_lease_leads() -> None:
    assert uninstall.leader([lease("1")], [lease("2")]) == "a (Lease system/lease)"
    assert uninstall.leader([lease("1")], [lease("1")]) == ""
    assert uninstall.leader([], [lease("1")]) == "a (Lease system/lease)"
    # Given back meanwhile.
    assert uninstall.leader([lease("1")], [lease("2", "")]) == ""
    assert commands.LOOK > 2 * RETRY_PERIOD


def test_it_says_what_goes_and_what_stays() -> None:
    lines = uninstall.plan(LEFT, Screen()).splitlines()
    assert [re.split(r" {2,}", line) for line in lines[1:4]] == [
        ["a/stays", "it stays"],
        ["a/goes", "it goes: it is being deleted"],
        ["gone/x", "it goes, with its namespace"],
    ]
    assert lines[-1] == "3 quotas have the operator's finalizer."
    none = Left([quota("a/b")], [], [], [])
    assert uninstall.plan(none, Screen()) == "No quota has the operator's finalizer."


def test_it_says_what_is_left_and_what_removes_it() -> None:
    text = uninstall.rest(LEFT)
    assert "kubectl delete validatingwebhookconfiguration hooks" in text
    assert "2 quotas (a/stays, a/others)" in text
    assert "2 quotas being deleted (a/goes, gone/x)" in text
    assert "1 namespace being deleted with quotas (gone)" in text
    assert "kubectl delete crd hugetlbquotas.hugetlb.dev" in text
    assert uninstall.rest(Left([], [], [], [])).endswith("- nothing")


def test_the_same_as_data() -> None:
    data = uninstall.document(LEFT, ["a/b"])
    assert data["letGo"] == ["a/b"]
    first, *_, last = data["quotas"]
    assert first == {"namespace": "a", "name": "stays", "finalizer": True, "deleting": False}
    assert not last["finalizer"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "agrees"),
    [("y\n", True), ("Yes\n", True), ("n\n", False), ("\n", False), ("", False)],
)
async def test_it_asks(answer: str, agrees: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert await commands._agrees("Take it off?") == agrees


async def test_without_a_terminal_it_wants_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(Problem, match="say --yes"):
        await commands._agrees("Take it off?")
