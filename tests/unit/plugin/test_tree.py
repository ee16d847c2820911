"""``tree`` draws the forest of quotas."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.plugin import tree
from hugetlb_quota.plugin.table import Screen
from hugetlb_quota.plugin.world import World
from tests.unit.plugin.worlds import NAMESPACES, TENANT, acme, quota, world


def drawn(found: World, screen: Screen | None = None, **options: Any) -> str:
    wide = options.pop("wide", False)
    branches = tree.branches(found, **options)
    return tree.picture(found, branches, screen or Screen(60), wide=wide)


def test_the_forest_of_a_tenant() -> None:
    assert (
        drawn(acme())
        == """\
QUOTA            SIZE  USE                       USED   HARD
acme/tenant      2Mi   ██████████▓▓▓▒░░░░  78%  176Mi  224Mi
│                1Gi   ░░░░░░░░░░░░░░░░░░   0%      0    4Gi
├─ acme-db/db    2Mi   █████████░░░░░░░░░  50%   64Mi  128Mi
└─ acme-web/web  2Mi   ██████▓▓▓▒░░░░░░░░  58%  112Mi  192Mi

█ pods  ▓ retained  ▒ reserved  ░ free"""
    )


def test_wide_shows_every_number() -> None:
    text = drawn(acme(), Screen(100), wide=True)
    assert re.search(r"PODS +RETAINED +RESERVED +FREE", text)
    assert re.search(r"acme/tenant .* 176Mi +224Mi +128Mi +32Mi +16Mi +48Mi", text)


def test_a_plain_screen_gets_ascii() -> None:
    text = drawn(acme(), Screen(60, plain=True))
    assert text.isascii()
    assert "`- acme-web/web" in text
    assert "######===-........" in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("colour", [True, False])
def test_fits_the_terminal(width: int, colour: bool) -> None:
    bare = re.sub(r"\x1b\[[\d;]*m", "", drawn(acme(), Screen(width, colour=colour)))
    assert bare == drawn(acme(), Screen(width))
    assert max(map(len, bare.splitlines())) <= width


@pytest.mark.parametrize(
    ("used", "code"), [("60Mi", "32"), ("76Mi", "33"), ("90Mi", "31"), ("110Mi", "31")]
)
def test_the_colour_says_how_near_the_limit_is(used: str, code: str) -> None:
    text = drawn(world([quota("a/b", "100Mi", pods=used)]), Screen(60, colour=True))
    assert f"\x1b[{code}m█" in text


def test_no_escape_codes_without_colour() -> None:
    assert "\x1b" not in drawn(acme())


def test_the_state_names_the_fault() -> None:
    found = world(
        [
            quota(
                "acme/lost", "64Mi", parent={"namespace": "x", "name": "y"}, bad="ParentNotFound"
            ),
            quota("acme/new", "64Mi", counted=False),
            quota("acme/strange", "many"),
        ]
    )
    states = {line.split()[0]: line.split()[-1] for line in drawn(found).splitlines()[1:4]}
    assert states == {
        "acme/lost": "ParentNotFound",
        "acme/new": "NotCounted",
        "acme/strange": "Invalid",
    }


def test_a_cycle_is_drawn_once() -> None:
    a, b = ({"namespace": "acme", "name": name} for name in "ab")
    found = world(
        [
            quota("acme/a", "2Mi", parent=b, bad="Cycle"),
            quota("acme/b", "2Mi", parent=a, bad="Cycle"),
        ]
    )
    text = drawn(found)
    assert [text.count(f"acme/{name}") for name in "ab"] == [1, 1]


def test_a_size_without_a_limit_has_no_bar() -> None:
    found = world([quota("a/b", {}, pods="64Mi")])
    assert re.search(r"a/b +2Mi +64Mi +unlimited", drawn(found))


def test_a_limit_of_zero_has_no_percentage() -> None:
    assert re.search(r"a/b +2Mi +░+ +- +0 +0", drawn(world([quota("a/b", "0")])))


def test_shows_only_one_quota_and_those_below() -> None:
    text = drawn(acme(), top=QuotaKey("acme-db", "db"))
    assert "acme-db/db" in text
    assert "tenant" not in text


def test_shows_a_namespace_with_the_quotas_above() -> None:
    text = drawn(acme(), namespace="acme-web")
    assert "acme/tenant" in text
    assert "acme-web/web" in text
    assert "acme-db" not in text


def test_names_a_parent_that_may_not_be_seen() -> None:
    found = world([quota("acme-db/db", "128Mi", parent=TENANT)], namespaces=None, whole=False)
    assert "below acme/tenant" in drawn(found)


def test_without_namespaces_conditions_say_which_quotas_are_attached() -> None:
    quotas = [
        quota("acme/tenant", "64Mi", good="Root"),
        quota("acme-db/db", "64Mi", parent=TENANT),
        quota("acme-web/web", "64Mi", parent=TENANT, bad="ForeignParent"),
    ]
    text = drawn(world(quotas, namespaces=None))
    assert "└─ acme-db/db" in text
    assert "\nacme-web/web" in text
    # With namespaces, their labels decide, and tenant lets no other namespace attach.
    assert "\nacme-db/db" in drawn(world(quotas, namespaces=NAMESPACES))


def test_the_data_has_the_same_numbers() -> None:
    found = acme()
    (tenant,) = tree.document(found, tree.branches(found))
    assert tenant["used"] == {"hugepages-2Mi": "176Mi", "hugepages-1Gi": "0"}
    assert tenant["reserved"] == {"hugepages-2Mi": "16Mi", "hugepages-1Gi": "0"}
    assert [child["name"] for child in tenant["children"]] == ["db", "web"]


def test_without_quotas_there_is_no_picture() -> None:
    assert drawn(world([])) == ""
