"""Pods are asked about where a quota is, and only once admission has answered."""

from __future__ import annotations

from hugetlb_quota.controller.asking import (
    IN_FORCE_AFTER,
    UNUSED_FOR,
    WARN_AGAIN_AFTER,
    Asking,
    is_asked,
    is_silent,
)
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.resources import WEBHOOK_CONFIGURATIONS
from tests.unit.controller.fake_objects import FakeObjects, Json, configuration


class World:
    """A webhook configuration, and what is so in the cluster."""

    def __init__(self) -> None:
        self.api = FakeObjects()
        self.api.put(WEBHOOK_CONFIGURATIONS, configuration())
        self.quotas: bool | None = True
        self.trouble = ""
        self.now = 0.0
        self.told = 0
        self.warnings: list[str] = []
        self.asking = self.controller()

    def controller(self) -> Asking:
        return Asking(
            self.api,
            lambda: self.quotas,
            self._led,
            self._tell,
            self._warn,
            lambda: self.now,
            self._ask,
        )

    async def _led(self) -> None:
        """Nobody else leads."""

    def _tell(self) -> None:
        self.told += 1

    async def _warn(self, sentence: str) -> None:
        self.warnings.append(sentence)

    async def _ask(self, api: ObjectApi, raw: Json) -> str:
        return self.trouble

    @property
    def raw(self) -> Json:
        return self.api.objects["validatingwebhookconfigurations", "hooks"]

    async def live(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            pause = await self.asking.tend(await self.api.get(WEBHOOK_CONFIGURATIONS, "hooks"))
            if self.now + pause >= end:
                self.now = end
                return
            self.now += pause


async def test_nobody_is_asked_before_admission_answers() -> None:
    world = World()
    world.trouble = "admission does not answer"
    await world.live(600)
    assert is_silent(world.raw)
    assert not world.asking.in_force
    world.trouble = ""
    await world.live(1)
    assert is_asked(world.raw)
    assert not world.asking.in_force, "some API server may not have seen it"
    await world.live(IN_FORCE_AFTER + 1)
    assert world.asking.in_force
    assert world.told == 1


async def test_it_stays_when_admission_goes() -> None:
    world = World()
    await world.live(10)
    world.trouble = "admission does not answer"
    await world.live(600)
    assert is_asked(world.raw)
    assert world.asking.in_force


async def test_nobody_is_asked_once_the_last_quota_has_been_gone_for_a_while() -> None:
    world = World()
    await world.live(10)
    world.quotas = False
    await world.live(UNUSED_FOR - 1)
    assert is_asked(world.raw)
    await world.live(2)
    assert is_silent(world.raw)
    assert not world.asking.in_force
    # And that about quotas still is.
    assert world.raw["webhooks"][2]["rules"]


async def test_a_quota_that_comes_meanwhile_begins_the_while_anew() -> None:
    world = World()
    await world.live(10)
    for exist in (False, True, False):
        world.quotas = exist
        await world.live(UNUSED_FOR - 1)
    assert is_asked(world.raw)
    assert world.asking.in_force


async def test_before_the_quotas_are_known_nothing_is_changed() -> None:
    world = World()
    world.quotas = None
    await world.live(10 * UNUSED_FOR)
    assert world.api.writes == []
    assert not world.asking.in_force


async def test_the_next_leader_waits_as_well() -> None:
    """The one before may have been killed with the very write."""
    world = World()
    await world.live(1)
    world.asking = world.controller()
    await world.live(0)
    assert not world.asking.in_force
    await world.live(IN_FORCE_AFTER + 1)
    assert world.asking.in_force


async def test_rules_that_were_taken_away_come_back_at_once_and_no_quota_begins_meanwhile() -> None:
    world = World()
    await world.live(10)
    assert world.warnings == []
    del world.raw["webhooks"][1]["rules"]
    # With or without: admission might be away as the rules are there, too.
    world.trouble = "admission does not answer"
    await world.live(0)
    assert is_asked(world.raw)
    assert not world.asking.in_force
    (warning,) = world.warnings
    assert "ValidatingWebhookConfiguration hooks" in warning
    await world.live(IN_FORCE_AFTER + 1)
    assert world.asking.in_force
    assert len(world.warnings) == 1


async def test_rules_that_came_into_force_nowhere_are_no_loss() -> None:
    world = World()
    await world.live(1)
    del world.raw["webhooks"][0]["rules"]
    world.trouble = "admission does not answer"
    await world.live(10)
    assert not world.asking.in_force
    assert not is_asked(world.raw)
    assert world.warnings == []


async def test_who_takes_rules_away_again_and_again_is_told_of_once_a_minute() -> None:
    world = World()
    await world.live(10)
    # Each time they come into force once more.
    for _ in range(int(2 * WARN_AGAIN_AFTER / (IN_FORCE_AFTER + 1))):
        del world.raw["webhooks"][1]["rules"]
        await world.live(IN_FORCE_AFTER + 1)
        assert is_asked(world.raw)
    assert len(world.warnings) == 2
