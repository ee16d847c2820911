"""The keeper's writes: a kill at any write, other writers, and objects that can't be read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hugetlb_quota.controller.certificates import authority, stored
from hugetlb_quota.controller.certificates.keeper import Keeper, Missing, Names
from hugetlb_quota.controller.certificates.rotation import Policy
from hugetlb_quota.controller.certificates.state import Trust
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


async def confirm() -> None:
    """Confirm: this controller leads."""


def keeper(api: FakeObjects, clock: Clock, names: Names = NAMES) -> Keeper:
    return Keeper(api, names, POLICY, confirm, clock)


def configured(api: FakeObjects) -> Trust:
    return stored.read_trust(api.objects["validatingwebhookconfigurations", "hooks"])


async def live(api: FakeObjects, clock: Clock, names: Names = NAMES) -> None:
    """Lead until the next write is far away; each pause has a new keeper."""
    for _ in range(20):
        pause = await keeper(api, clock, names).update()
        if pause > 2 * POLICY.overlap.total_seconds():
            return
        clock.now += timedelta(seconds=pause)
    raise AssertionError("the keeper still writes")


def check(api: FakeObjects) -> None:
    """Check that the API server trusts the certificate, and uses a path that is answered."""
    serving = stored.read_serving(api.objects["secrets", "serving"])
    trust = configured(api)
    if serving.pair is not None:
        assert any(authority.is_issued_by(serving.pair.certificate, ca) for ca in trust.bundle)
        assert trust.path in (serving.path, serving.former_path)


async def test_the_next_leader_continues_after_a_kill_at_any_write() -> None:
    """Each write, from the first CA to the end of a rotation, is the last write of a leader."""
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
            for rotates in (False, True):
                if rotates:
                    rotate(api)
                try:
                    await live(api, clock)
                except Killed:
                    check(api)
                    api.killed_at = None
                    clock.now += timedelta(seconds=20)
                    await live(api, clock)
            check(api)
            assert len(configured(api).bundle) == 1
            assert stored.ROTATE not in ca_annotations(api)


def rotate(api: FakeObjects) -> None:
    raw = api.objects["secrets", "ca"]
    raw["metadata"]["annotations"] = {stored.ROTATE: "now", "other": "stays"}
    api.put(SECRETS, raw)


def ca_annotations(api: FakeObjects) -> Json:
    found: Json = api.objects["secrets", "ca"]["metadata"]["annotations"]
    return found


async def test_other_annotations_and_fields_stay() -> None:
    clock, api = Clock(), objects()
    api.objects["secrets", "ca"]["type"] = "Opaque"
    rotate(api)
    await live(api, clock)
    assert ca_annotations(api) == {"other": "stays"}
    assert api.objects["secrets", "ca"]["type"] == "Opaque"
    rules = [
        each.get("rules")
        for each in api.objects["validatingwebhookconfigurations", "hooks"]["webhooks"]
    ]
    assert rules == [None, None, [{"resources": ["hugetlbquotas"]}]]


async def test_nothing_is_written_when_nothing_is_due() -> None:
    clock, api = Clock(), objects()
    await live(api, clock)
    before = len(api.writes)
    for _ in range(5):
        await keeper(api, clock).update()
        clock.now += timedelta(hours=3)
    assert len(api.writes) == before


@pytest.mark.parametrize("harm", ["no base64!", "AAAA", None])
async def test_a_secret_that_cant_be_read_gets_new_content(harm: str | None) -> None:
    clock, api = Clock(), objects()
    await live(api, clock)
    for name in ("ca", "serving"):
        data: dict[str, Any] = api.objects["secrets", name]["data"]
        for key in data:
            data[key] = harm
    await live(api, clock)
    check(api)
    assert stored.read_serving(api.objects["secrets", "serving"]).pair is not None


async def test_one_webhook_without_its_ca_is_corrected() -> None:
    clock, api = Clock(), objects()
    await live(api, clock)
    raw = api.objects["validatingwebhookconfigurations", "hooks"]
    del raw["webhooks"][1]["clientConfig"]["caBundle"]
    await keeper(api, clock).update()
    assert configured(api).uniform
    paths = [
        each["clientConfig"]["service"]["path"].rpartition("/")[2]
        for each in api.objects["validatingwebhookconfigurations", "hooks"]["webhooks"]
    ]
    assert paths == ["validate-pods", "validate-pods", "validate-quotas"]


async def test_the_ca_of_another_tool_stays() -> None:
    clock, api = Clock(), objects()
    raw = configuration()
    for each in raw["webhooks"]:
        each["clientConfig"]["caBundle"] = "bWluZQ=="
    api.put(WEBHOOK_CONFIGURATIONS, raw)
    names = Names("system", "hooks", "serving", "")
    await keeper(api, clock, names).update()
    raw = api.objects["validatingwebhookconfigurations", "hooks"]
    assert {each["clientConfig"]["caBundle"] for each in raw["webhooks"]} == {"bWluZQ=="}
    assert configured(api).path == stored.read_serving(api.objects["secrets", "serving"]).path != ""


async def test_a_missing_object_of_the_chart_is_named() -> None:
    api = objects()
    del api.objects["secrets", "ca"]
    with pytest.raises(Missing, match="secrets system/ca is missing: install or upgrade the chart"):
        await keeper(api, Clock()).update()


async def test_a_controller_that_lost_the_lease_writes_nothing() -> None:
    async def lost() -> None:
        raise RuntimeError("another leads")

    api = objects()
    with pytest.raises(RuntimeError):
        await Keeper(api, NAMES, POLICY, lost, Clock()).update()
    assert api.writes == []


async def test_a_configuration_without_ca_and_path_is_completed() -> None:
    clock, api = Clock(), objects()
    one = keeper(api, clock)
    assert one.complete(configuration()) == configuration(), "no CA and path yet"
    while await one.update() < POLICY.overlap.total_seconds():
        clock.now += timedelta(seconds=60)
    whole = await one.read_webhooks()
    bare = {**configuration(), "metadata": whole["metadata"]}
    assert one.complete(bare) == whole
    assert one.complete(whole) is whole
