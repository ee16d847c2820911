"""The command ``uninstall`` waits for "yes", looks for the operator, and removes finalizers."""

from __future__ import annotations

import io
import sys
from typing import Any, cast

import pytest

from hugetlb_quota.api.quota import FINALIZER
from hugetlb_quota.kube.controller_lease import HOOK
from hugetlb_quota.kube.lease import RETRY_PERIOD
from hugetlb_quota.plugin import cli, facts_reader, uninstall_command
from hugetlb_quota.plugin.cluster import Cluster
from hugetlb_quota.plugin.problem import Exit, Problem
from hugetlb_quota.plugin.uninstall import Left
from tests.unit.plugin.check_facts import workload
from tests.unit.plugin.test_uninstall import lease, quota

Json = dict[str, Any]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "agrees"),
    [("y\n", True), ("Yes\n", True), ("n\n", False), ("\n", False), ("", False)],
)
async def test_only_the_answer_yes_agrees(
    answer: str, agrees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert await uninstall_command.ask("Take it off?") == agrees


async def test_needs_an_option_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(Problem, match="add --yes"):
        await uninstall_command.ask("Take it off?")


class Remains:
    """A cluster in which two of three quotas have the finalizer.

    ``leases``: the results of the next reads of the Leases; the last result stays. ``programs``:
    the Deployments and DaemonSets, by component. ``conflicts``: the number of times that a quota
    changes before its finalizer is removed. ``restored``: whether a controller adds each finalizer
    again.
    """

    server = "https://test"

    def __init__(self) -> None:
        self.quotas = {
            name: quota(name, *finalizers)
            for name, finalizers in (("a/x", [FINALIZER]), ("a/y", [FINALIZER]), ("a/z", []))
        }
        self.leases: list[list[Json]] = [[]]
        self.programs: dict[str, list[Json]] = {"controller": [], "agent": []}
        self.conflicts = 0
        self.restored = False
        self.scopes: list[str | None] = []

    async def read_left(self, _: object, namespace: str | None) -> Left:
        self.scopes.append(namespace)
        return Left(list(self.quotas.values()), [], [], ["hooks"])

    async def read_programs(self, _: object) -> dict[str, list[Json]]:
        return self.programs

    async def read_leases(self, _: object) -> list[Json]:
        return self.leases.pop(0) if len(self.leases) > 1 else self.leases[0]

    async def remove_finalizer(self, raw: Json) -> bool:
        if self.conflicts:
            self.conflicts -= 1
            return False
        if not self.restored:
            name = "{namespace}/{name}".format_map(raw["metadata"])
            self.quotas[name] = quota(name)
        return True

    @property
    def guarded(self) -> list[str]:
        return [name for name, raw in self.quotas.items() if raw["metadata"]["finalizers"]]


@pytest.fixture
def remains(monkeypatch: pytest.MonkeyPatch) -> Remains:
    remains = Remains()
    monkeypatch.setattr(facts_reader, "read_left", remains.read_left)
    monkeypatch.setattr(facts_reader, "programs", remains.read_programs)
    monkeypatch.setattr(facts_reader, "leases", remains.read_leases)
    monkeypatch.setattr(uninstall_command, "LOOK", 0.0)
    return remains


async def uninstall(remains: Remains, *words: str) -> Exit:
    options = cli.parse(["uninstall", *words])
    return await uninstall_command.run(cast(Cluster, remains), options)


async def test_removes_the_finalizers_and_says_how_many(
    remains: Remains, capsys: pytest.CaptureFixture[str]
) -> None:
    remains.conflicts = 1
    assert await uninstall(remains, "--yes", "-n", "a") == Exit.DONE
    assert remains.guarded == []
    assert set(remains.scopes) == {"a"}
    assert "Removed the operator's finalizer from 2 quotas." in capsys.readouterr().out


async def test_a_dry_run_removes_nothing(
    remains: Remains, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await uninstall(remains, "--dry-run") == Exit.DONE
    assert remains.guarded == ["a/x", "a/y"]
    assert "2 quotas have the operator's finalizer." in capsys.readouterr().out


async def test_the_answer_no_removes_nothing(
    remains: Remains, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    assert await uninstall(remains) == Exit.REFUSED
    assert remains.guarded == ["a/x", "a/y"]


@pytest.mark.parametrize("word", ["--yes", "--dry-run"])
@pytest.mark.parametrize("finalizers", [True, False])
@pytest.mark.parametrize(
    ("leases", "programs", "sentence"),
    [
        ([[lease("1")], [lease("2")]], {}, r"a \(Lease system/lease\) leads"),
        # The Lease of an earlier release, which a new controller takes.
        ([[lease("1", "")], [lease("2")]], {}, r"a \(Lease system/lease\) leads"),
        ([[lease("1", HOOK)], [lease("2", HOOK)]], {}, "The hook of helm uninstall"),
        # The release is just starting.
        ([[]], {"controller": [workload("controller")]}, "Deployment hugetlb-system/controller"),
        ([[lease("1")]], {"agent": [workload("agent")]}, "Use helm uninstall"),
    ],
)
async def test_while_the_operator_is_installed_nothing_is_removed_or_advised(
    remains: Remains,
    capsys: pytest.CaptureFixture[str],
    word: str,
    finalizers: bool,
    leases: list[list[Json]],
    programs: dict[str, list[Json]],
    sentence: str,
) -> None:
    if not finalizers:
        remains.quotas = {"a/z": quota("a/z")}
    guarded = remains.guarded
    remains.leases, remains.programs = list(leases), programs
    with pytest.raises(Problem, match=sentence) as problem:
        await uninstall(remains, word)
    assert problem.value.code == Exit.REFUSED
    assert remains.guarded == guarded
    assert capsys.readouterr().out == ""


async def test_a_lease_without_renewals_does_not_matter(remains: Remains) -> None:
    remains.leases = [[lease("1")]]
    assert await uninstall(remains, "--yes") == Exit.DONE
    assert remains.guarded == []


def test_a_leader_renews_its_lease_twice_between_the_two_reads() -> None:
    assert uninstall_command.LOOK > 2 * RETRY_PERIOD


async def test_finalizers_that_come_back_are_a_problem(remains: Remains) -> None:
    remains.restored = True
    with pytest.raises(Problem, match="The finalizers come back") as problem:
        await uninstall(remains, "--yes")
    assert problem.value.code == Exit.REFUSED


async def test_without_finalizers_no_answer_is_needed(
    remains: Remains, capsys: pytest.CaptureFixture[str]
) -> None:
    remains.quotas = {"a/z": quota("a/z")}
    assert await uninstall(remains) == Exit.DONE
    assert "kubectl delete validatingwebhookconfiguration hooks" in capsys.readouterr().out


async def test_the_data_lists_the_quotas_that_lost_their_finalizer(
    remains: Remains, capsys: pytest.CaptureFixture[str]
) -> None:
    await uninstall(remains, "--yes", "-o", "json")
    printed = capsys.readouterr().out
    assert printed.startswith("{")
    assert '"a/x",\n    "a/y"' in printed
