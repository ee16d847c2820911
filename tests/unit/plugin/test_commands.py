"""The commands: the output of each command for its options, and the exit codes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hugetlb_quota.plugin import cli, commands, facts_reader
from hugetlb_quota.plugin.facts import Facts
from hugetlb_quota.plugin.problem import Exit, Problem
from tests.unit.plugin.check_facts import WELL
from tests.unit.plugin.stub_cluster import StubCluster
from tests.unit.plugin.worlds import acme, world


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubCluster:
    stub = StubCluster()
    stub.install(monkeypatch)
    return stub


async def run(*words: str) -> Exit:
    return await commands.run(cli.parse(words))


def test_each_command_of_the_command_line_has_a_function() -> None:
    for name in commands._COMMANDS:
        words = {"who": ["a"], "explain": ["pod", "a"]}.get(name, [])
        assert cli.parse([name, *words]).command == name


async def test_standard_error_names_the_unseen_resources(
    stub: StubCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.unseen = ["pods (you may not list pods)"]
    assert await run("tree") == Exit.DONE
    printed = capsys.readouterr()
    assert printed.err == "Not seen: pods (you may not list pods).\n"
    assert "acme/tenant" in printed.out


async def test_check_names_the_unseen_resources_in_its_findings(
    stub: StubCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def read(_: object) -> Facts:
        return replace(WELL, nodes=None)

    monkeypatch.setattr(facts_reader, "read", read)
    stub.unseen = ["nodes"]
    assert await run("check") == Exit.FORBIDDEN
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "because you may not list nodes" in printed.out


async def test_a_bare_quota_is_looked_up_in_the_namespace_of_the_context(
    stub: StubCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["who", "web"], ["who", "acme-web/web"], ["who", "web", "-n", "acme-web"]):
        assert await run(*words) == Exit.DONE
        assert capsys.readouterr().out.startswith("acme-web/web 2Mi: ")
    with pytest.raises(Problem, match="did you mean acme-web/web") as problem:
        await run("who", "web", "-n", "acme-db")
    assert problem.value.code == Exit.NOT_FOUND


@pytest.mark.parametrize("name", ["a/b/c", "a/", "/b", "a//b"])
@pytest.mark.parametrize("words", [["who"], ["tree"], ["explain", "pod"]])
async def test_a_name_of_too_many_or_empty_parts_is_an_error_of_the_command_line(
    stub: StubCluster, words: list[str], name: str
) -> None:
    with pytest.raises(Problem, match=f"{name} is no name: NAME or NAMESPACE/NAME is exp") as found:
        await run(*words, name)
    assert found.value.code == Exit.USAGE


async def test_tree_shows_a_quota_of_another_namespace_than_that_of_the_option(
    stub: StubCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    await run("tree", "acme-db/db", "-n", "acme-web")
    printed = capsys.readouterr().out
    assert "acme-db/db" in printed
    assert "acme-web/web" not in printed


async def test_tree_of_a_namespace_shows_also_the_quotas_above_as_the_help_says(
    stub: StubCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    await run("tree", "-n", "acme-web")
    printed = capsys.readouterr().out
    assert "acme/tenant" in printed
    assert "acme-web/web" in printed
    assert "acme-db/db" not in printed
    with pytest.raises(SystemExit):
        cli.parse(["tree", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "tree shows also the quotas above and below" in shown


async def test_an_empty_result_is_a_sentence(
    stub: StubCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.shown = world([])
    for words, sentence in (
        (["tree", "-n", "a"], "There is no HugeTLBQuota in namespace a; kubectl explain htq.spec"),
        (["top"], "No pod asks for huge pages."),
        (["top", "-n", "a"], "No pod of namespace a asks for huge pages."),
        (["top", "nodes"], "No node reports; see kubectl hugetlb check."),
        (["files"], "No file holds huge pages of a pod that is gone."),
        (["files", "--all"], "No file holds huge pages."),
        (["files", "--all", "-n", "a"], "No file of namespace a holds huge pages."),
    ):
        assert await run(*words) == Exit.DONE
        assert capsys.readouterr().out.startswith(sentence)
    stub.unseen = ["pods"]
    await run("top")
    assert capsys.readouterr().out == "No pod that you may see asks for huge pages.\n"


@pytest.mark.parametrize("words", [["top", "nodes"], ["files"]])
async def test_without_reports_nothing_can_be_shown(stub: StubCluster, words: list[str]) -> None:
    stub.shown = replace(acme(), reports=None)
    stub.unseen = ["the reports of nodes (you may not list hugetlbnodes)"]
    with pytest.raises(Problem, match="Nothing can be shown: the reports of nodes") as problem:
        await run(*words)
    assert problem.value.code == Exit.FORBIDDEN


@pytest.mark.parametrize("words", [["tree"], ["top"], ["top", "nodes"], ["files"]])
async def test_data_is_a_list_of_items(
    stub: StubCluster, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(*words, "-o", "json") == Exit.DONE
    assert json.loads(capsys.readouterr().out)["items"]


async def test_a_watch_draws_no_data(stub: StubCluster) -> None:
    with pytest.raises(Problem, match="--watch draws for people") as problem:
        await run("tree", "--watch", "-o", "yaml")
    assert problem.value.code == Exit.USAGE
