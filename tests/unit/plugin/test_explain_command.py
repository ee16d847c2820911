"""The command ``explain`` reads pods by name or from a manifest, and requests a dry run."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from hugetlb_quota.plugin import cli, explain_command
from hugetlb_quota.plugin.problem import Exit, Problem
from hugetlb_quota.plugin.words import KINDS
from tests.unit.plugin.stub_cluster import StubCluster
from tests.unit.plugin.test_explain import deployment
from tests.unit.plugin.worlds import pod_spec


async def explain(stub: StubCluster, *words: str) -> Exit:
    return await explain_command.run(stub.cluster, cli.parse(["explain", *words]))


def manifest(folder: Path, text: str) -> str:
    path = folder / "manifest.yaml"
    path.write_text(text)
    return str(path)


def test_each_kind_of_the_command_line_has_a_resource() -> None:
    assert set(explain_command.WORKLOADS) == set(KINDS.values())


async def test_a_bare_name_is_looked_up_in_the_namespace_of_the_context() -> None:
    stub = StubCluster()
    stub.objects["Deployment", "acme-web", "api"] = deployment("16Mi")
    stub.objects["Deployment", "acme-db", "api"] = deployment("16Mi", namespace="acme-db")
    assert await explain(stub, "deploy", "api") == Exit.DONE
    assert await explain(stub, "deploy", "acme-db/api") == Exit.DONE
    assert stub.dry_runs == ["acme-web", "acme-db"]


async def test_the_namespace_of_the_command_line_precedes_that_of_the_manifest(
    tmp_path: Path,
) -> None:
    stub = StubCluster()
    path = manifest(tmp_path, json.dumps(deployment("16Mi", namespace="acme-db")))
    await explain(stub, "-f", path)
    await explain(stub, "-f", path, "-n", "acme")
    unnamed = json.dumps({"kind": "Pod", "spec": pod_spec("16Mi")})
    await explain(stub, "-f", manifest(tmp_path, unnamed))
    assert stub.dry_runs == ["acme-db", "acme", "acme-web"]


async def test_the_dry_run_decides_the_exit_code(tmp_path: Path) -> None:
    stub = StubCluster()
    stub.verdict = (False, "no Pod Security")
    path = manifest(tmp_path, json.dumps(deployment("16Mi")))
    assert await explain(stub, "-f", path) == Exit.REFUSED


async def test_a_pod_without_huge_pages_needs_no_dry_run(tmp_path: Path) -> None:
    stub = StubCluster()
    path = manifest(tmp_path, json.dumps({"kind": "Pod", "spec": {"containers": []}}))
    assert await explain(stub, "-f", path) == Exit.DONE
    assert stub.dry_runs == []


async def test_all_pods_of_a_manifest_are_explained_and_one_refusal_decides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = StubCluster()
    stub.verdict = (None, "you may not create pods")
    both = "\n---\n".join(json.dumps(deployment(amount)) for amount in ("100Mi", "16Mi"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(both))
    assert await explain(stub, "-f", "-", "-o", "json") == Exit.REFUSED
    items = json.loads(capsys.readouterr().out)["items"]
    assert [each["refused"] for each in items] == [True, False]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file or directory"),
        ("{", "can't be used: "),
        ("kind: Service\n", "it has no object that makes pods"),
    ],
)
async def test_a_manifest_that_can_not_be_used_is_a_problem_in_one_line(
    text: str | None, reason: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "none") if text is None else manifest(tmp_path, text)
    with pytest.raises(Problem, match=reason) as problem:
        await explain(StubCluster(), "-f", path)
    assert problem.value.code == Exit.USAGE
    assert "\n" not in str(problem.value)
