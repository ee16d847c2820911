"""Whether the API server asks about pods: only where there is a quota, and admission answers.

A webhook without rules is asked about nothing. So a cluster without quotas depends on nobody,
an install whose image can't be pulled refuses no pod, and what a GitOps tool applies again
changes nothing, as the chart says nothing of rules.
"""

from __future__ import annotations

import logging
import ssl
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import aiohttp

from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.resources import SERVICES, WEBHOOK_CONFIGURATIONS

#: Seconds from the rules' being written until every API server goes by them.
IN_FORCE_AFTER: Final = 2.0
#: Seconds without any quota until nobody is asked any more.
UNUSED_FOR: Final = 60.0
#: Seconds between two warnings of rules that were taken away: two that write over each other must
#: not make an Event each time.
WARN_AGAIN_AFTER: Final = 60.0
#: Seconds for admission's answer.
_TIMEOUT: Final = 5.0
_PORT: Final = 443
#: What is said when somebody has taken rules away.
TAKEN_AWAY: Final = (
    "Somebody wrote over ValidatingWebhookConfiguration {name} without the rules of the webhooks"
    " about pods, and they were put back. Pods that were created in the moment between passed by"
    " all quotas; they are counted, and a quota may be over its limit until they end. Apply the"
    " configuration instead of replacing it."
)

Json = dict[str, Any]
Rules = list[dict[str, Any]]
WhyNoAnswer = Callable[[ObjectApi, Json], Awaitable[str]]

#: What each webhook about pods is asked about; that about quotas always is.
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
    # No subresource changes a huge page request, but whoever may write a pod's status may
    # change its labels with it.
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


def is_asked(configuration: Json) -> bool:
    """Whether the webhooks about pods have their rules, all of them."""
    return with_rules(configuration, asked=True) == configuration


def is_silent(configuration: Json) -> bool:
    """Whether none of them has any."""
    return with_rules(configuration, asked=False) == configuration


def with_rules(configuration: Json, *, asked: bool) -> Json:
    """The configuration by which pods are asked about, or are not."""
    webhooks = []
    for webhook in configuration["webhooks"]:
        rules = RULES.get(webhook["name"])
        rest = {name: value for name, value in webhook.items() if name != "rules"}
        if rules is None:
            webhooks.append(webhook)
        else:
            webhooks.append({**rest, "rules": rules} if asked else rest)
    return {**configuration, "webhooks": webhooks}


class Asking:
    """Turns the rules on and off, and says whether they are in force.

    :param quotas_exist: None while that is not known.
    :param confirm: raises LeadershipLost where this controller leads no more.
    :param came_in_force: called when :attr:`in_force` has become True.
    :param taken_away: called when rules that were in force were found gone, with a sentence,
        once they are back; once a minute at most.
    :param ask: in the place of :func:`why_no_answer`.
    """

    def __init__(
        self,
        api: ObjectApi,
        quotas_exist: Callable[[], bool | None],
        confirm: Callable[[], Awaitable[object]],
        came_in_force: Callable[[], None],
        taken_away: Callable[[str], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
        ask: WhyNoAnswer | None = None,
    ) -> None:
        self._api = api
        self._why_no_answer = ask or why_no_answer
        self._quotas_exist = quotas_exist
        self._confirm = confirm
        self._came_in_force = came_in_force
        self._taken_away = taken_away
        self._clock = clock
        self._seen_since: float | None = None
        self._unused_since: float | None = None
        self._trouble = ""
        self._were_taken = False
        self._warned_at: float | None = None
        #: Whether every pod that asks for huge pages is asked about by now. Before, no
        #: quota may be said to hold: pods would pass it by.
        self.in_force = False

    async def tend(self, configuration: Json) -> float:
        """Do what there is to do; seconds until there may be more.

        :raises ApiError: when the configuration can't be written; it may have been.
        """
        exist = self._quotas_exist()
        if exist is None:
            return UNUSED_FOR  # called again when they are known
        if exist:
            self._unused_since = None
            return await self._turn_on(configuration)
        return await self._turn_off(configuration)

    async def _turn_on(self, configuration: Json) -> float:
        if not is_asked(configuration):
            if self.were_taken(configuration):
                await self.restore(configuration)
                return 0.0
            self._forget()
            if why := await self._why_no_answer(self._api, configuration):
                if why != self._trouble:
                    logger.warning("No quota holds yet, as pods are not asked about: %s", why)
                self._trouble = why
                return 1.0
            self._trouble = ""
            if await self._write(configuration, asked=True):
                logger.info("Pods that ask for huge pages are asked about from now on.")
            return 0.0
        if self._seen_since is None:
            self._seen_since = self._clock()
        left = self._seen_since + IN_FORCE_AFTER - self._clock()
        if left <= 0 and not self.in_force:
            self.in_force = True
            self._came_in_force()
        return max(left, 0.0) or UNUSED_FOR

    def were_taken(self, configuration: Json) -> bool:
        """Whether rules that were in force are gone; from then on :attr:`in_force` is False."""
        if self.in_force and not is_asked(configuration):
            self._forget()
            self._were_taken = True
        return self._were_taken

    async def restore(self, configuration: Json) -> None:
        """Put back rules that were taken: at once, whether or not admission answers just now.

        They would be there if nobody had taken them away.

        :raises ApiError: when the configuration can't be written; it may have been.
        """
        if await self._write(configuration, asked=True):
            self._were_taken = False
            if self._warned_at is None or self._clock() >= self._warned_at + WARN_AGAIN_AFTER:
                self._warned_at = self._clock()
                sentence = TAKEN_AWAY.format(name=configuration["metadata"]["name"])
                logger.warning(sentence)
                await self._taken_away(sentence)

    async def _turn_off(self, configuration: Json) -> float:
        if self._unused_since is None:
            self._unused_since = self._clock()
        left = self._unused_since + UNUSED_FOR - self._clock()
        if left > 0:
            return left
        if not is_silent(configuration):
            # Before the write: a quota that is made meanwhile must wait.
            self._forget()
            self._were_taken = False
            await self._write(configuration, asked=False)
            logger.info("There is no quota: nobody is asked about pods any more.")
        return UNUSED_FOR

    def _forget(self) -> None:
        self.in_force, self._seen_since = False, None

    async def _write(self, configuration: Json, *, asked: bool) -> bool:
        """Whether it was written; if not, it is decided anew on what is there now."""
        await self._confirm()
        body = with_rules(configuration, asked=asked)
        name = configuration["metadata"]["name"]
        try:
            await self._api.replace(WEBHOOK_CONFIGURATIONS, name, body)
        except errors.Conflict:
            return False
        return True


async def why_no_answer(api: ObjectApi, configuration: Json) -> str:
    """What keeps admission from answering; "" when it does, as the API server asks it."""
    client = configuration["webhooks"][0]["clientConfig"]
    bundle, service = client.get("caBundle"), client.get("service")
    if not bundle or not service:
        return "the webhook configuration names no CA yet."
    try:
        url = await _url(api, service)
        context = ssl.create_default_context(cadata=b64decode(bundle).decode())
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(
                url,
                ssl=context,
                server_hostname=f"{service['name']}.{service['namespace']}.svc",
                allow_redirects=False,
            ) as answer,
        ):
            if answer.status != 200:
                return f"admission answers {answer.status}: {(await answer.text())[:200]}"
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return f"admission does not answer: {error or type(error).__name__}"
    except errors.ApiError as error:
        return f"the Service of admission can't be read: {error}"
    return ""


async def _url(api: ObjectApi, service: Mapping[str, Any]) -> str:
    """Where the API server finds the Service; a cluster's DNS is not needed."""
    found = await api.get(SERVICES, service["name"], service["namespace"])
    spec = found.get("spec") or {}
    named = spec.get("type") == "ExternalName"
    host = str((spec.get("externalName") if named else spec.get("clusterIP")) or "")
    if host in ("", "None"):
        raise ValueError(f"Service {service['namespace']}/{service['name']} has no address")
    host = f"[{host}]" if ":" in host else host
    return f"https://{host}:{service.get('port') or _PORT}/readyz"
