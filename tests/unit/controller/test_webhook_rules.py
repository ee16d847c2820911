"""The rules of the webhooks: on while a quota exists, and only after admission has answered."""

from __future__ import annotations

import pytest

from hugetlb_quota.controller.webhooks.rules import (
    IN_FORCE_AFTER,
    UNUSED_FOR,
    WARN_AGAIN_AFTER,
    WebhookRules,
    has_no_rules,
    has_rules,
)
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.resources import WEBHOOK_CONFIGURATIONS, Resource
from tests.unit.controller.fake_objects import FakeObjects, Json, configuration

NO_ANSWER = "admission does not answer"


class World:
    """A webhook configuration, a clock, and the state of the cluster."""

    def __init__(self) -> None:
        self.api = FakeObjects()
        self.api.put(WEBHOOK_CONFIGURATIONS, configuration())
        self.quotas: bool | None = True
        self.probe_failure = ""
        self.another_leads = False
        self.now = 0.0
        self.times_in_force = 0
        self.warnings: list[str] = []
        self.rules = self.leader()

    def leader(self) -> WebhookRules:
        return WebhookRules(
            self.api,
            quotas_exist=lambda: self.quotas,
            confirm=self._confirm,
            on_in_force=self._count,
            on_removed=self._warn,
            clock=lambda: self.now,
            probe=self._probe,
        )

    async def _confirm(self) -> None:
        """Confirm that this controller leads."""
        if self.another_leads:
            raise RuntimeError("another controller leads")

    def _count(self) -> None:
        self.times_in_force += 1

    async def _warn(self, sentence: str) -> None:
        self.warnings.append(sentence)

    async def _probe(self, api: ObjectApi, raw: Json) -> str:
        return self.probe_failure

    @property
    def raw(self) -> Json:
        return self.api.objects["validatingwebhookconfigurations", "hooks"]

    async def live(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            pause = await self.rules.update(await self.api.get(WEBHOOK_CONFIGURATIONS, "hooks"))
            if self.now + pause >= end:
                self.now = end
                return
            self.now += pause


async def test_the_rules_wait_until_admission_answers() -> None:
    world = World()
    world.probe_failure = NO_ANSWER
    await world.live(600)
    assert has_no_rules(world.raw)
    assert not world.rules.in_force
    world.probe_failure = ""
    await world.live(1)
    assert has_rules(world.raw)
    assert not world.rules.in_force, "an API server may not have seen the rules yet"
    await world.live(IN_FORCE_AFTER + 1)
    assert world.rules.in_force
    assert world.times_in_force == 1


async def test_the_rules_stay_when_admission_stops_to_answer() -> None:
    world = World()
    await world.live(10)
    world.probe_failure = NO_ANSWER
    await world.live(600)
    assert has_rules(world.raw)
    assert world.rules.in_force


@pytest.mark.parametrize("quotas", [True, False], ids=["adds rules", "removes rules"])
async def test_a_leader_that_was_paused_changes_no_rules(quotas: bool) -> None:
    """The leader's copy of the quotas is old. Its successor may have counted other quotas."""
    world = World()
    if not quotas:
        await world.live(10)
        world.quotas = False
        await world.live(UNUSED_FOR - 1)
    before = dict(world.raw)
    world.another_leads = True
    with pytest.raises(RuntimeError):
        await world.live(2)
    assert world.raw == before


async def test_the_rules_are_removed_a_minute_after_the_last_quota() -> None:
    world = World()
    await world.live(10)
    world.quotas = False
    await world.live(UNUSED_FOR - 1)
    assert has_rules(world.raw)
    await world.live(2)
    assert has_no_rules(world.raw)
    assert not world.rules.in_force
    assert world.raw["webhooks"][2]["rules"], "the webhook about quotas keeps its rules"


async def test_a_new_quota_starts_the_minute_again() -> None:
    world = World()
    await world.live(10)
    for exist in (False, True, False):
        world.quotas = exist
        await world.live(UNUSED_FOR - 1)
    assert has_rules(world.raw)
    assert world.rules.in_force


async def test_nothing_is_written_before_the_controller_has_listed_the_quotas() -> None:
    world = World()
    world.quotas = None
    await world.live(10 * UNUSED_FOR)
    assert world.api.writes == []
    assert not world.rules.in_force


async def test_the_next_leader_waits_too() -> None:
    """A kill may have ended the previous leader right after its write of the rules."""
    world = World()
    await world.live(1)
    world.rules = world.leader()
    await world.live(0)
    assert not world.rules.in_force
    await world.live(IN_FORCE_AFTER + 1)
    assert world.rules.in_force


async def test_removed_rules_are_put_back_at_once_and_no_quota_becomes_ready_meanwhile() -> None:
    world = World()
    await world.live(10)
    assert world.warnings == []
    del world.raw["webhooks"][1]["rules"]
    # Admission does not answer. This alone would not remove the rules.
    world.probe_failure = NO_ANSWER
    await world.live(0)
    assert has_rules(world.raw)
    assert not world.rules.in_force
    (warning,) = world.warnings
    assert "ValidatingWebhookConfiguration hooks" in warning
    await world.live(IN_FORCE_AFTER + 1)
    assert world.rules.in_force
    assert len(world.warnings) == 1


async def test_a_conflict_while_rules_are_put_back_is_tried_again() -> None:
    world = World()
    await world.live(10)
    del world.raw["webhooks"][1]["rules"]
    world.api.put(WEBHOOK_CONFIGURATIONS, world.raw)
    watched = {**world.raw, "metadata": {**world.raw["metadata"]}}
    world.api.put(WEBHOOK_CONFIGURATIONS, world.raw)  # a newer version, still without rules
    world.probe_failure = NO_ANSWER
    assert await world.rules.restore(watched)
    assert not has_rules(world.raw)
    assert world.warnings == []
    await world.live(0)
    assert has_rules(world.raw)
    assert len(world.warnings) == 1
    assert not await world.rules.restore(world.raw)


@pytest.mark.parametrize("another", [False, True], ids=["own write", "write of another leader"])
async def test_a_version_from_before_the_rules_is_no_removal(another: bool) -> None:
    """A watch may show the version long after the rules came into force."""
    world = World()
    late = await world.api.get(WEBHOOK_CONFIGURATIONS, "hooks")
    await world.live(10)
    if another:
        world.rules = world.leader()
        await world.live(10)
    written = list(world.api.writes)
    assert not await world.rules.restore(late)
    await world.live(10)
    assert world.rules.in_force
    assert not await world.rules.restore(await world.api.get(WEBHOOK_CONFIGURATIONS, "hooks"))
    assert (world.api.writes, world.warnings) == (written, [])


async def test_a_removal_is_warned_about_if_the_write_of_the_rules_had_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    await world.live(10)
    del world.raw["webhooks"][1]["rules"]
    world.api.put(WEBHOOK_CONFIGURATIONS, world.raw)
    replace = world.api.replace

    async def without_answer(resource: Resource, name: str, body: Json) -> Json:
        await replace(resource, name, body)
        raise errors.ApiUnreachable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(world.api, "replace", without_answer)
        with pytest.raises(errors.ApiUnreachable):
            await world.rules.restore(await world.api.get(WEBHOOK_CONFIGURATIONS, "hooks"))
    assert has_rules(world.raw)
    await world.live(10)
    assert world.rules.in_force
    assert len(world.warnings) == 1
    written = list(world.api.writes)
    assert not await world.rules.restore(await world.api.get(WEBHOOK_CONFIGURATIONS, "hooks"))
    assert world.api.writes == written


async def test_removed_rules_are_put_back_after_a_restore_of_etcd_too() -> None:
    world = World()
    await world.live(10)
    world.api.version = 0
    world.api.put(WEBHOOK_CONFIGURATIONS, configuration())
    await world.live(0)
    assert has_rules(world.raw)
    assert len(world.warnings) == 1


async def test_rules_that_were_not_in_force_yet_are_not_put_back() -> None:
    world = World()
    await world.live(1)
    del world.raw["webhooks"][0]["rules"]
    world.probe_failure = NO_ANSWER
    await world.live(10)
    assert not world.rules.in_force
    assert not has_rules(world.raw)
    assert world.warnings == []


async def test_repeated_removals_are_warned_about_once_a_minute() -> None:
    world = World()
    await world.live(10)
    # The rules are in force again before each removal.
    for _ in range(int(2 * WARN_AGAIN_AFTER / (IN_FORCE_AFTER + 1))):
        del world.raw["webhooks"][1]["rules"]
        await world.live(IN_FORCE_AFTER + 1)
        assert has_rules(world.raw)
    assert len(world.warnings) == 2
