"""The two webhooks: every request gets an answer in time, and every failure is a refusal."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import orjson
from aiohttp import web

from hugetlb_quota.admission import request_sentences
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.metrics import AdmissionMetrics
from hugetlb_quota.admission.refusal_events import RefusalEvents
from hugetlb_quota.admission.review import (
    AdmissionRequest,
    Decision,
    MalformedReview,
    deny,
    parse,
)
from hugetlb_quota.api import GROUP
from hugetlb_quota.api.quota import KIND, PLURAL
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.serving import VALIDATE_PODS, VALIDATE_QUOTAS
from hugetlb_quota.program import about

#: The largest request body, in bytes. An UPDATE has the object twice, and etcd stores no object
#: above 1.5 MiB (``--max-request-bytes``).
BODY_LIMIT: Final = 3 * 1024**2
#: The largest number of requests that are decided at the same time. It is below the number of
#: connections, so that further requests get a refusal at once.
MOST_REQUESTS: Final = 960

Decide = Callable[[AdmissionRequest, Deadline], Awaitable[Decision]]
#: Group, plural and subresource; each may be "".
_Resource = tuple[str, str, str]

logger = logging.getLogger(__name__)


class PathSecret(Protocol):
    """The secret first part of the webhooks' paths; of all clients, only the API server has it."""

    def matches(self, part: str) -> bool:
        """Whether ``part`` is the secret."""
        ...


@dataclass(frozen=True, slots=True)
class _Webhook:
    """One webhook.

    ``noun``: the kind of object in messages. ``kind``: the same in metrics. ``resources``: the
    webhook answers only requests about these.
    """

    noun: str
    kind: str
    resources: frozenset[_Resource]
    decide: Decide

    def parse(self, body: bytes) -> AdmissionRequest:
        """The request in ``body``.

        :raises MalformedReview: also if the request is about another resource.
        """
        request = parse(body)
        resource = (request.resource.group, request.resource.resource, request.sub_resource)
        if resource not in self.resources:
            answered = ", ".join(sorted(map(_resource_name, self.resources)))
            raise MalformedReview(
                f"it is about {_resource_name(resource)}, and this path only answers requests"
                f" about {answered}."
            )
        return request


class _BodyRefused(Exception):
    """The body of an HTTP request can't be read."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = f"{text} Nothing was changed.\n"


class Webhooks:
    """The routes of the webhooks, and the way from an HTTP request to its answer."""

    def __init__(
        self,
        path: PathSecret,
        decide_pod: Decide,
        decide_quota: Decide,
        metrics: AdmissionMetrics,
        refusals: RefusalEvents,
    ) -> None:
        self._path = path
        self._metrics = metrics
        self._refusals = refusals
        self._deciding = 0
        # A write of a pod's status may also change the pod's labels.
        pods = frozenset({("", "pods", ""), ("", "pods", "status")})
        self._pods = _Webhook("pod", "pod", pods, decide_pod)
        quotas = frozenset({(GROUP, PLURAL, "")})
        self._quotas = _Webhook(KIND, "quota", quotas, decide_quota)

    def routes(self) -> list[web.RouteDef]:
        """The routes for the aiohttp application."""
        return [
            web.post(f"/{{secret}}/{VALIDATE_PODS}", self._validate_pods),
            web.post(f"/{{secret}}/{VALIDATE_QUOTAS}", self._validate_quotas),
        ]

    async def _validate_pods(self, request: web.Request) -> web.Response:
        return await self._answer(request, self._pods)

    async def _validate_quotas(self, request: web.Request) -> web.Response:
        return await self._answer(request, self._quotas)

    async def _answer(self, http_request: web.Request, webhook: _Webhook) -> web.Response:
        """The answer to an HTTP request: a decision, or an HTTP error."""
        if not self._path.matches(http_request.match_info["secret"]):
            # The same answer as for a path without a route; the log does not show the guess.
            return web.Response(status=404, text="404: Not Found")
        began = time.perf_counter()
        deadline = Deadline.of_request(http_request.query.get("timeout"))
        try:
            request = webhook.parse(await _read_body(http_request, deadline))
            what = f"{webhook.noun} {request.namespace}/{request.name}".rstrip("/")
            decision = await self._decide(webhook.decide, request, what, deadline)
        except _BodyRefused as error:
            return web.Response(status=error.status, text=error.text)
        except MalformedReview as error:
            return web.Response(status=400, text=f"{error}\n")
        self._metrics.decided(webhook.kind, decision, time.perf_counter() - began)
        if not decision.allowed:
            self._note_refusal(webhook, request, decision)
        return web.Response(
            body=orjson.dumps(decision.review(request.uid)), content_type="application/json"
        )

    async def _decide(
        self, decide: Decide, request: AdmissionRequest, what: str, deadline: Deadline
    ) -> Decision:
        """The decision; a refusal if the decision fails or takes too long.

        :param what: the object, for messages.
        :raises MalformedReview: if the object of the request is malformed.
        """
        if self._deciding >= MOST_REQUESTS:
            message = request_sentences.too_many_requests(what, MOST_REQUESTS)
            return deny(message, retry_after=1, cause="overloaded")
        self._deciding += 1
        try:
            async with asyncio.timeout_at(deadline.at):
                return await decide(request, deadline)
        except MalformedReview:
            raise
        except TimeoutError:
            return deny(request_sentences.time_short(what, deadline.seconds), cause="timeout")
        except errors.ApiError as error:
            return deny(request_sentences.unreachable(what, error), cause="unreachable")
        except Exception as error:
            logger.exception("%s of %s could not be decided", request.operation, what)
            return deny(request_sentences.unexpected(what, error), cause="bug")
        finally:
            self._deciding -= 1

    def _note_refusal(
        self, webhook: _Webhook, request: AdmissionRequest, decision: Decision
    ) -> None:
        """Log the refusal, and note it for an Event on each quota that refuses."""
        logger.info(
            "%s of %s: %s",
            *(request.operation, request.user_info.username, decision.message),
            extra=about(
                kind=webhook.noun,
                namespace=request.namespace,
                name=request.name,
                uid=request.uid,
                quotas=", ".join(map(str, decision.by)),
            ),
        )
        if not request.dry_run:
            self._refusals.note(decision.by, decision.message)


async def _read_body(request: web.Request, deadline: Deadline) -> bytes:
    """The body of the HTTP request.

    :raises _BodyRefused: if the body is too large, or does not come in time.
    """
    try:
        async with asyncio.timeout_at(deadline.at):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise _BodyRefused(
            413,
            f"The request body is larger than {BODY_LIMIT} bytes, more than two objects of the"
            " largest size that Kubernetes stores.",
        ) from error
    except TimeoutError as error:
        raise _BodyRefused(408, "The request body did not come in time.") from error


def _resource_name(resource: _Resource) -> str:
    """The name as kubectl has it, such as "pods/status" or "deployments.apps"."""
    group, plural, subresource = resource
    return f"{plural}{'/' if subresource else ''}{subresource}{'.' if group else ''}{group}"
