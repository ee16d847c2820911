"""A probe of admission, through its Service and by the CA that the API server trusts."""

from __future__ import annotations

import ssl
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.resources import SERVICES

#: The timeout of a probe, in seconds.
_TIMEOUT: Final = 5.0
#: The port of a Service that the webhook configuration does not name, as for the API server.
_DEFAULT_PORT: Final = 443
#: The length to which the text of a bad answer is cut.
_LONGEST_TEXT: Final = 200

Json = dict[str, Any]


async def why_not_ready(api: ObjectApi, configuration: Json) -> str:
    """Why admission can't answer the API server yet, as a sentence; "" if admission can.

    :param configuration: the webhook configuration; its first webhook names Service and CA.
    """
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
                return f"admission answers {answer.status}: {(await answer.text())[:_LONGEST_TEXT]}"
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return f"admission does not answer: {error or type(error).__name__}"
    except errors.ApiError as error:
        return f"the Service of admission can't be read: {error}"
    return ""


async def _url(api: ObjectApi, service: Mapping[str, Any]) -> str:
    """The URL of admission's readiness, with the Service's address: no DNS is needed.

    :raises ValueError: if the Service has no address.
    :raises ApiError: if the Service can't be read.
    """
    found = await api.get(SERVICES, service["name"], service["namespace"])
    spec = found.get("spec") or {}
    external = spec.get("type") == "ExternalName"
    host = str((spec.get("externalName") if external else spec.get("clusterIP")) or "")
    if host in ("", "None"):
        raise ValueError(f"Service {service['namespace']}/{service['name']} has no address")
    host = f"[{host}]" if ":" in host else host
    return f"https://{host}:{service.get('port') or _DEFAULT_PORT}/readyz"
