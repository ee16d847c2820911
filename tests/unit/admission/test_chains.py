"""climb: from some quotas to all their ancestors that are in the cache."""

from __future__ import annotations

import pytest

from hugetlb_quota.accounting.forest import LONGEST_CHAIN, Cycle, ParentNotFound, QuotaKey
from hugetlb_quota.admission.chains import Snapshot, climb
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from tests.unit.admission.fake_api import FakeApi, filled_cache, namespace, quota

LIMIT = {"hugepages-2Mi": "2Mi"}


@pytest.fixture
def api() -> FakeApi:
    """An API server with db/root, db/mid below, and db/leaf below db/mid."""
    api = FakeApi()
    api.put(namespace("db"))
    api.put(quota("db/root", LIMIT))
    api.put(quota("db/mid", LIMIT, parent="db/root"))
    api.put(quota("db/leaf", LIMIT, parent="db/mid"))
    return api


async def climb_from(api: FakeApi, *start: str) -> Snapshot:
    cache = await filled_cache(api)
    found = [cache.get(QuotaKey.parse(key)) for key in start]
    return climb(cache, [each for each in found if isinstance(each, QuotaObject)])


def names(snapshot: Snapshot) -> list[str]:
    """The names of the quotas in the snapshot; its forest has the same quotas."""
    assert {quota.key for quota in snapshot.forest} == snapshot.quotas.keys()
    return sorted(key.name for key in snapshot.quotas)


def chain(snapshot: Snapshot, key: str) -> list[str]:
    return [quota.key.name for quota in snapshot.forest.chain(QuotaKey.parse(key))]


async def test_finds_the_ancestors_and_no_other_quota(api: FakeApi) -> None:
    api.put(quota("db/other", LIMIT, parent="db/mid"))
    assert names(await climb_from(api, "db/leaf")) == ["leaf", "mid", "root"]
    assert names(await climb_from(api, "db/root")) == ["root"]
    assert names(await climb_from(api)) == []


async def test_climbs_from_several_quotas_at_once(api: FakeApi) -> None:
    api.put(quota("db/alone", LIMIT))
    snapshot = await climb_from(api, "db/leaf", "db/mid", "db/alone")
    assert names(snapshot) == ["alone", "leaf", "mid", "root"]


async def test_finds_the_ancestor_that_is_still_charged(api: FakeApi) -> None:
    """A quota stays charged to status.attachedTo if the quota may not attach to its new parent."""
    api.put(quota("other/top", LIMIT))
    api.put(quota("db/leaf", LIMIT, parent="other/top", attached_to="db/mid"))
    assert names(await climb_from(api, "db/leaf")) == ["leaf", "mid", "root", "top"]


async def test_the_forest_has_the_labels_of_namespaces(api: FakeApi) -> None:
    api.put(namespace("app", team="a"))
    api.put(quota("db/root", LIMIT, children={"matchLabels": {"team": "a"}}))
    api.put(quota("app/leaf", LIMIT, parent="db/root"))
    assert chain(await climb_from(api, "app/leaf"), "app/leaf") == ["leaf", "root"]


async def test_a_missing_ancestor_breaks_the_chain_in_the_forest(api: FakeApi) -> None:
    api.put(quota("db/mid", LIMIT, parent="db/gone"))
    snapshot = await climb_from(api, "db/leaf")
    assert names(snapshot) == ["leaf", "mid"]
    with pytest.raises(ParentNotFound):
        chain(snapshot, "db/leaf")


async def test_an_invalid_ancestor_is_an_error(api: FakeApi) -> None:
    api.put(quota("db/root", {"hugepages-3Mi": "3Mi"}))
    with pytest.raises(InvalidQuota, match="db/root is invalid"):
        await climb_from(api, "db/leaf")


async def test_a_cycle_ends(api: FakeApi) -> None:
    api.put(quota("db/root", LIMIT, parent="db/leaf"))
    snapshot = await climb_from(api, "db/leaf")
    assert names(snapshot) == ["leaf", "mid", "root"]
    with pytest.raises(Cycle):
        chain(snapshot, "db/leaf")


@pytest.mark.parametrize("levels", [LONGEST_CHAIN, LONGEST_CHAIN + 1, LONGEST_CHAIN + 5])
async def test_finds_one_quota_more_than_the_longest_chain_has(api: FakeApi, levels: int) -> None:
    for level in range(levels):
        above = f"db/q{level + 1:02}" if level + 1 < levels else None
        api.put(quota(f"db/q{level:02}", LIMIT, parent=above))
    snapshot = await climb_from(api, "db/q00")
    assert len(names(snapshot)) == min(levels, LONGEST_CHAIN + 1)
    if levels == LONGEST_CHAIN:
        assert len(chain(snapshot, "db/q00")) == levels
    else:
        with pytest.raises(Cycle, match="over more than 16 levels"):
            chain(snapshot, "db/q00")
