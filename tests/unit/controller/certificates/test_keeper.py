"""The steps as they are stored: killed with any write, late, or met by somebody else's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hugetlb_quota.controller.certificates import authority, stored
from hugetlb_quota.controller.certificates.keeper import Keeper, Missing, Names
from hugetlb_quota.controller.certificates.rotation import Policy, Trust
from hugetlb_quota.kube.resources import SECRETS, WEBHOOK_CONFIGURATIONS
from tests.unit.controller.fake_objects import FakeObjects, Json, Killed, configuration

NAMES = Names("system", "hooks", "serving", "ca")
POLICY = Policy("test-ca", ())


class Clock:
    now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def objects() -> FakeObjects:
    api = FakeObjects()
    api.put(WEBHOOK_CONFIGURATIONS, configuration())
    for name in ("serving", "ca"):
        api.put(SECRETS, {"metadata": {"name": name, "namespace": "system"}})
    return api


async def led() -> None:
    """Nobody else leads."""


def keeper(api: FakeObjects, clock: Clock, names: Names = NAMES) -> Keeper:
    return Keeper(api, names, POLICY, led, clock)


def told(api: FakeObjects) -> Trust:
    return stored.read_trust(api.objects["validatingwebhookconfigurations", "hooks"])


async def live(api: FakeObjects, clock: Clock, names: Names = NAMES) -> None:
    """Lead until there is nothing to do for a long time."""
    for _ in range(20):
        pause = await keeper(api, clock, names).tend()
        if pause > 2 * POLICY.overlap.total_seconds():
            return
        clock.now += timedelta(seconds=pause)
    raise AssertionError("it does not come to rest")


def check(api: FakeObjects) -> None:
    """What is served is trusted, and its path is asked."""
    serving = stored.read_serving(api.objects["secrets", "serving"])
    trust = told(api)
    if serving.pair is not None:
        assert any(authority.is_issued_by(serving.pair.certificate, ca) for ca in trust.bundle)
        assert trust.path in (serving.path, serving.former_path)


async def test_killed_with_any_write_the_next_leader_goes_on() -> None:
    """From nothing to the end of a rotation: every write is the last of some leader."""
    clock, api = Clock(), objects()
    await live(api, clock)
    rotate(api)
    await live(api, clock)
    writes = len(api.writes)
    assert writes > 10
    for killed_at in range(writes):
        for lands in (True, False):
            clock, api = Clock(), objects()
            api.killed_at, api.lands = killed_at, lands
            for asked in (False, True):
                if asked:
                    rotate(api)
                try:
                    await live(api, clock)
                except Killed:
                    check(api)
                    api.killed_at = None
                    clock.now += timedelta(seconds=20)
                    await live(api, clock)
            check(api)
            assert len(told(api).bundle) == 1
            assert stored.ROTATE not in notes(api)


def rotate(api: FakeObjects) -> None:
    raw = api.objects["secrets", "ca"]
    raw["metadata"]["annotations"] = {stored.ROTATE: "now", "other": "stays"}
    api.put(SECRETS, raw)


def notes(api: FakeObjects) -> Json:
    found: Json = api.objects["secrets", "ca"]["metadata"]["annotations"]
    return found


async def test_other_annotations_and_fields_stay() -> None:
    clock, api = Clock(), objects()
    api.objects["secrets", "ca"]["type"] = "Opaque"
    rotate(api)
    await live(api, clock)
    assert notes(api) == {"other": "stays"}
    assert api.objects["secrets", "ca"]["type"] == "Opaque"
    rules = [
        each.get("rules")
        for each in api.objects["validatingwebhookconfigurations", "hooks"]["webhooks"]
    ]
    assert rules == [None, None, [{"resources": ["hugetlbquotas"]}]]


async def test_at_rest_nothing_is_written() -> None:
    clock, api = Clock(), objects()
    await live(api, clock)
    before = len(api.writes)
    for _ in range(5):
        await keeper(api, clock).tend()
        clock.now += timedelta(hours=3)
    assert len(api.writes) == before


@pytest.mark.parametrize("harm", ["no base64!", "AAAA", None])
async def test_a_secret_that_cant_be_read_is_made_anew(harm: str | None) -> None:
    clock, api = Clock(), objects()
    await live(api, clock)
    for name in ("ca", "serving"):
        data: dict[str, Any] = api.objects["secrets", name]["data"]
        for key in data:
            data[key] = harm
    await live(api, clock)
    check(api)
    assert stored.read_serving(api.objects["secrets", "serving"]).pair is not None


async def test_one_webhook_that_was_written_over_is_put_right() -> None:
    clock, api = Clock(), objects()
    await live(api, clock)
    raw = api.objects["validatingwebhookconfigurations", "hooks"]
    del raw["webhooks"][1]["clientConfig"]["caBundle"]
    await keeper(api, clock).tend()
    assert told(api).everywhere
    paths = [
        each["clientConfig"]["service"]["path"].rpartition("/")[2]
        for each in api.objects["validatingwebhookconfigurations", "hooks"]["webhooks"]
    ]
    assert paths == ["validate-pods", "validate-pods", "validate-quotas"]


async def test_where_others_make_certificates_their_ca_stays() -> None:
    clock, api = Clock(), objects()
    raw = configuration()
    for each in raw["webhooks"]:
        each["clientConfig"]["caBundle"] = "bWluZQ=="
    api.put(WEBHOOK_CONFIGURATIONS, raw)
    given = Names("system", "hooks", "serving", "")
    await keeper(api, clock, given).tend()
    raw = api.objects["validatingwebhookconfigurations", "hooks"]
    assert {each["clientConfig"]["caBundle"] for each in raw["webhooks"]} == {"bWluZQ=="}
    assert told(api).path == stored.read_serving(api.objects["secrets", "serving"]).path != ""


async def test_what_the_chart_has_not_made_is_named() -> None:
    api = objects()
    del api.objects["secrets", "ca"]
    with pytest.raises(Missing, match="secrets system/ca is missing: upgrade or install the chart"):
        await keeper(api, Clock()).tend()


async def test_who_leads_no_more_writes_nothing() -> None:
    async def lost() -> None:
        raise RuntimeError("another leads")

    api = objects()
    with pytest.raises(RuntimeError):
        await Keeper(api, NAMES, POLICY, lost, Clock()).tend()
    assert api.writes == []


async def test_what_was_told_last_completes_a_configuration_that_tells_nothing() -> None:
    clock, api = Clock(), objects()
    one = keeper(api, clock)
    assert one.complete(configuration()) == configuration(), "nothing was told yet"
    while await one.tend() < POLICY.overlap.total_seconds():
        clock.now += timedelta(seconds=60)
    whole = await one.read_webhooks()
    bare = {**configuration(), "metadata": whole["metadata"]}
    assert one.complete(bare) == whole
    assert one.complete(whole) is whole
