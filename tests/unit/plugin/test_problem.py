"""A message about a missing object suggests similar names."""

from __future__ import annotations

import pytest

from hugetlb_quota.plugin.problem import Exit, not_found


@pytest.mark.parametrize(
    ("existing", "end"),
    [
        (["acme/tenant", "x/y"], "did you mean acme/tenant?"),
        (["acme/tennant"], "did you mean acme/tennant?"),
        (["x/y"], "there is x/y."),
        (["u/v", "x/y"], "there are u/v, x/y."),
        ([], "there is no HugeTLBQuota at all."),
    ],
)
def test_suggests_similar_names(existing: list[str], end: str) -> None:
    problem = not_found("HugeTLBQuota", "default/tenant", existing)
    assert str(problem).endswith(end)
    assert problem.code == Exit.NOT_FOUND


def test_the_words_before_the_existing_names() -> None:
    problem = not_found("context", "nope", ["test", "work"], have="the kubeconfig has: ")
    assert str(problem) == "There is no context nope; the kubeconfig has: test, work."
