"""README shows exactly the output of the programs."""

from __future__ import annotations

from pathlib import Path

from hugetlb_quota.accounting.counter import Shortfall
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.admission import pod_sentences
from hugetlb_quota.page_size import PageSize
from hugetlb_quota.plugin import tree
from hugetlb_quota.plugin.table import Screen
from tests.code_blocks import words
from tests.unit.plugin.worlds import acme

README = (Path(__file__).resolve().parents[3] / "README.md").read_text()
MIB = 1024**2


def test_readme_has_the_tree_of_the_plugin() -> None:
    world = acme()
    drawn = tree.picture(world, tree.branches(world), Screen(72), wide=False)
    assert f"$ kubectl hugetlb tree\n{drawn}\n```" in README


def test_readme_has_the_refusal_of_the_demo() -> None:
    """In the third scene a pod requests 100Mi while 128Mi of 224Mi are used."""
    short = Shortfall(
        quota=QuotaKey("acme", "tenant"),
        size=PageSize(2 * MIB),
        requested=100 * MIB,
        pods=128 * MIB,
        retained=0,
        reserved=0,
        hard=224 * MIB,
    )
    assert pod_sentences.over_quota("acme-web/web-1", [short]) in words(README)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 120
