"""The rules of the webhooks about pods: whether the API server calls admission about pods.

The API server never calls a webhook without rules. The rules are on only while a quota exists,
and only after admission has answered. So a cluster without quotas depends on no program, and if
the image can't be pulled, the installation refuses no pod. The chart renders no rules, so a GitOps
tool that applies the chart again removes none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from hugetlb_quota.controller.webhooks.admission_probe import why_not_ready
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.resources import WEBHOOK_CONFIGURATIONS

#: The time from the write of the rules until every API server follows them, in seconds.
IN_FORCE_AFTER: Final = 2.0
#: How long there must be no quota before the rules are removed, in seconds.
UNUSED_FOR: Final = 60.0
#: The shortest time between two warnings about removed rules, in seconds: a tool that removes the
#: rules again and again must not cause an Event each time.
WARN_AGAIN_AFTER: Final = 60.0
#: The time until admission is probed again, in seconds.
_PROBE_AGAIN_AFTER: Final = 1.0
#: The warning about rules that somebody removed.
RULES_REMOVED: Final = (
    "Somebody replaced ValidatingWebhookConfiguration {name} with a version without the rules of"
    " the webhooks about pods. The rules were put back. Pods that were created meanwhile were"
    " admitted unchecked. They are counted, and a quota may be over its limit until pods end. Use"
    " apply for the configuration, not replace."
)

Json = dict[str, Any]
Rules = list[dict[str, Any]]
#: Says why admission can't answer the API server; "" if admission can.
Probe = Callable[[ObjectApi, Json], Awaitable[str]]

#: The rules of each webhook about pods. The chart renders the rules of the webhook about quotas.
RULES: Final[Mapping[str, Rules]] = {
    "pods.hugetlb.dev": [
        {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "resources": ["pods"],
            "operations": ["CREATE"],
            "scope": "Namespaced",
        }
    ],
    # A write of the subresource "status" can change a pod's labels too. No subresource can change
    # a pod's request of huge pages.
    "relabelled.pods.hugetlb.dev": [
        {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "resources": ["pods", "pods/status"],
            "operations": ["UPDATE"],
            "scope": "Namespaced",
        }
    ],
}

logger = logging.getLogger(__name__)


def has_rules(configuration: Json) -> bool:
    """Whether all webhooks about pods have their rules."""
    return with_rules(configuration) == configuration


def has_no_rules(configuration: Json) -> bool:
    """Whether no webhook about pods has rules."""
    return without_rules(configuration) == configuration


def with_rules(configuration: Json) -> Json:
    """The configuration with the rules of all webhooks about pods."""
    webhooks = [
        {**webhook, "rules": RULES[webhook["name"]]} if webhook["name"] in RULES else webhook
        for webhook in configuration["webhooks"]
    ]
    return {**configuration, "webhooks": webhooks}


def without_rules(configuration: Json) -> Json:
    """The configuration without rules of the webhooks about pods."""
    webhooks = [
        {name: value for name, value in webhook.items() if name != "rules"}
        if webhook["name"] in RULES
        else webhook
        for webhook in configuration["webhooks"]
    ]
    return {**configuration, "webhooks": webhooks}


def _version(configuration: Json) -> int:
    return int(configuration["metadata"]["resourceVersion"])


class WebhookRules:
    """Turns the rules on and off, and knows whether the rules are in force.

    :param quotas_exist: whether the cluster has a quota; None while the controller does not know.
    :param confirm: called before each write; raises LeadershipLost if this controller does not
        lead any more.
    :param on_in_force: called when :attr:`in_force` becomes True.
    :param on_removed: called after rules that were in force were removed and put back, with a
        sentence; at most once a minute.
    :param clock: the present time in seconds, by any clock.
    :param probe: says why admission can't answer the API server.
    """

    def __init__(
        self,
        api: ObjectApi,
        *,
        quotas_exist: Callable[[], bool | None],
        confirm: Callable[[], Awaitable[object]],
        on_in_force: Callable[[], None],
        on_removed: Callable[[str], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
        probe: Probe = why_not_ready,
    ) -> None:
        self._api = api
        self._quotas_exist = quotas_exist
        self._confirm = confirm
        self._on_in_force = on_in_force
        self._on_removed = on_removed
        self._clock = clock
        self._probe = probe
        #: When this controller first read the rules, and the version that it read then.
        self._on_since: float | None = None
        self._on_version = 0
        self._unused_since: float | None = None
        self._probe_failure = ""
        self._must_restore = False
        self._warned_at: float | None = None
        #: Whether every API server calls admission about every pod that asks for huge pages. Until
        #: then no quota may become Ready, because pods would bypass the quota.
        self.in_force = False

    async def update(self, configuration: Json) -> float:
        """Turn the rules on or off as needed.

        :param configuration: as read from the API server just now.
        :returns: the time until the next call is needed, in seconds.
        :raises ApiError: if a write failed; the server may have done the write.
        """
        exist = self._quotas_exist()
        if exist is None:
            return UNUSED_FOR  # the caller calls earlier, when the controller knows
        if exist:
            self._unused_since = None
            return await self._turn_on(configuration)
        return await self._turn_off(configuration)

    async def restore(self, configuration: Json) -> bool:
        """Put the rules back if somebody removed rules that were in force.

        A watch may be late: a version from before the rules shows no removal. The write does not
        wait until admission answers, because without the removal the rules would be there too.
        After a failed write or a Conflict, the next call writes again.

        :param configuration: as a watch shows it.
        :returns: whether the rules were removed.
        :raises ApiError: if the write failed; the server may have done the write.
        """
        if _version(configuration) <= self._on_version:
            return False
        return await self._restore(configuration)

    async def _restore(self, configuration: Json) -> bool:
        if self.in_force and not has_rules(configuration):
            self._not_in_force()
            self._must_restore = True
        if not self._must_restore:
            return False
        if await self._write(with_rules(configuration)):
            self._must_restore = False
            await self._warn(configuration["metadata"]["name"])
        return True

    async def _turn_on(self, configuration: Json) -> float:
        if not has_rules(configuration):
            # The API server was read just now, so the version does not matter. After a restore of
            # etcd the version is lower than before.
            if await self._restore(configuration):
                return 0.0
            self._not_in_force()
            failure = await self._probe(self._api, configuration)
            if failure and failure != self._probe_failure:
                logger.warning(
                    "No quota becomes Ready yet, because the webhooks about pods have no rules: %s",
                    failure,
                )
            self._probe_failure = failure
            if failure:
                return _PROBE_AGAIN_AFTER
            if await self._write(with_rules(configuration)):
                logger.info("From now on the API server calls admission about pods.")
            return 0.0
        if self._must_restore:
            # The write had no answer, or another program has put the rules back.
            self._must_restore = False
            await self._warn(configuration["metadata"]["name"])
        if self._on_since is None:
            self._on_since, self._on_version = self._clock(), _version(configuration)
        left = self._on_since + IN_FORCE_AFTER - self._clock()
        if left <= 0 and not self.in_force:
            self.in_force = True
            self._on_in_force()
        return max(left, 0.0) or UNUSED_FOR

    async def _turn_off(self, configuration: Json) -> float:
        if self._unused_since is None:
            self._unused_since = self._clock()
        left = self._unused_since + UNUSED_FOR - self._clock()
        if left > 0:
            return left
        if not has_no_rules(configuration):
            # Before the write: a quota that is created during the write must wait.
            self._not_in_force()
            self._must_restore = False
            if await self._write(without_rules(configuration)):
                logger.info(
                    "There is no quota: the API server no longer calls admission about pods."
                )
        return UNUSED_FOR

    def _not_in_force(self) -> None:
        self.in_force, self._on_since = False, None

    async def _write(self, configuration: Json) -> bool:
        """Write the configuration; False after a Conflict: decide again on the newer version."""
        await self._confirm()
        name = configuration["metadata"]["name"]
        try:
            await self._api.replace(WEBHOOK_CONFIGURATIONS, name, configuration)
        except errors.Conflict:
            return False
        return True

    async def _warn(self, name: str) -> None:
        now = self._clock()
        if self._warned_at is None or now >= self._warned_at + WARN_AGAIN_AFTER:
            self._warned_at = now
            sentence = RULES_REMOVED.format(name=name)
            logger.warning(sentence)
            await self._on_removed(sentence)
