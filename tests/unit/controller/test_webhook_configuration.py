"""The leader corrects the webhook configuration as soon as its watch shows a change."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from typing import cast

import pytest

from hugetlb_quota.controller.certificates.keeper import Keeper, Missing, Names
from hugetlb_quota.controller.certificates.rotation import Policy
from hugetlb_quota.controller.webhooks import rules as webhook_rules
from hugetlb_quota.controller.webhooks.configuration import Webhooks
from hugetlb_quota.controller.webhooks.rules import WebhookRules
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.resources import SECRETS, WEBHOOK_CONFIGURATIONS, Resource
from tests.unit.controller.fake_objects import FakeObjects, Json, configuration

NAMES = Names("system", "hooks", "serving", "ca")


class WatchedObjects(FakeObjects):
    """Adds list and watch of one object; `changes` has every version that was stored."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[tuple[str, Json]] = []

    def put(self, resource: Resource, raw: Json) -> None:
        super().put(resource, raw)
        stored = self.objects[resource.plural, raw["metadata"]["name"]]
        self.changes.append((resource.plural, copy.deepcopy(stored)))

    async def list_page(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        field_selector: str | None = None,
        limit: int | None = None,
        continuation: str | None = None,
        timeout: float = 1,
    ) -> Json:
        assert field_selector is not None
        name = field_selector.removeprefix("metadata.name=")
        items = [copy.deepcopy(self.objects[resource.plural, name])]
        return {"metadata": {"resourceVersion": str(self.version)}, "items": items}

    async def watch(
        self,
        resource: Resource,
        resource_version: str,
        namespace: str | None = None,
        *,
        field_selector: str | None = None,
    ) -> AsyncIterator[Json]:
        assert field_selector is not None
        name = field_selector.removeprefix("metadata.name=")
        seen = int(resource_version)
        while True:
            # Version N is the Nth change.
            for plural, raw in self.changes[seen:]:
                if (plural, raw["metadata"]["name"]) == (resource.plural, name):
                    yield {"type": "MODIFIED", "object": copy.deepcopy(raw)}
            seen = len(self.changes)
            while seen == len(self.changes):
                await asyncio.sleep(0.001)

    def configurations(self) -> list[Json]:
        return [raw for plural, raw in self.changes if plural == WEBHOOK_CONFIGURATIONS.plural]


async def test_a_replaced_configuration_gets_rules_ca_and_path_back_in_one_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhook_rules, "IN_FORCE_AFTER", 0.0)
    api = WatchedObjects()
    api.put(WEBHOOK_CONFIGURATIONS, configuration())
    for name in (NAMES.serving, NAMES.authority):
        api.put(SECRETS, {"metadata": {"name": name, "namespace": NAMES.namespace}})
    in_force, warnings = asyncio.Event(), list[str]()

    async def confirm() -> None:
        """Confirm: this controller leads."""

    async def probe(_: ObjectApi, __: Json) -> str:
        return ""

    async def warn(sentence: str) -> None:
        warnings.append(sentence)

    rules = WebhookRules(
        api,
        quotas_exist=lambda: True,
        confirm=confirm,
        on_in_force=in_force.set,
        on_removed=warn,
        probe=probe,
    )
    keeper = Keeper(api, NAMES, Policy("test-ca", ()), confirm)
    running = asyncio.create_task(Webhooks(api, NAMES, keeper, rules).run())
    async with asyncio.timeout(30):
        await in_force.wait()
        whole = api.configurations()[-1]
        api.put(WEBHOOK_CONFIGURATIONS, configuration())
        replaced = len(api.configurations())
        in_force.clear()
        await in_force.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    (written,) = api.configurations()[replaced:]
    assert written["webhooks"] == whole["webhooks"]
    assert len(warnings) == 1


class Failing:
    """A keeper that raises the next of ``failures``; without any, all is well for 30 seconds."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)

    async def update(self) -> float:
        if self.failures:
            raise self.failures.pop(0)
        return 30.0

    async def read_webhooks(self) -> Json:
        return {}


class Satisfied:
    """Rules that need another check in 7 seconds."""

    async def update(self, _: Json) -> float:
        return 7.0


def webhooks_of(keeper: Failing) -> Webhooks:
    return Webhooks(WatchedObjects(), NAMES, cast(Keeper, keeper), cast(WebhookRules, Satisfied()))


async def test_the_next_check_is_when_the_first_part_needs_it() -> None:
    assert await webhooks_of(Failing())._check() == 7.0


async def test_a_failure_is_logged_once_until_a_check_succeeds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    missing, refused = Missing("no Secret"), errors.Forbidden(403, "Forbidden", "no")
    webhooks = webhooks_of(Failing(missing, missing, refused))
    logged = []
    for _ in range(3):
        assert await webhooks._check() is None
        logged.append(len(caplog.records))
    assert logged == [1, 1, 2]
    assert await webhooks._check() == 7.0
    webhooks._keeper = cast(Keeper, Failing(refused))
    assert await webhooks._check() is None
    assert len(caplog.records) == 3


async def test_another_error_ends_the_controller() -> None:
    with pytest.raises(ZeroDivisionError):
        await webhooks_of(Failing(ZeroDivisionError()))._check()
