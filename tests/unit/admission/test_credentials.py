"""The serving certificate and the path secret, from a watched Secret."""

from __future__ import annotations

import asyncio
import logging
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trustme

from hugetlb_quota.admission.credentials import ServingSecret
from hugetlb_quota.kube.resources import Resource
from tests.unit.handshake import handshake

Json = dict[str, Any]


class Source:
    """An API server with one Secret; the watch delivers each change."""

    def __init__(self, **data: str | bytes) -> None:
        self.secret = secret(1, **data)
        self.events: asyncio.Queue[Json] = asyncio.Queue()

    async def list_page(self, resource: Resource, *_: object, **query: object) -> Json:
        assert (str(resource), query["field_selector"]) == ("secrets", "metadata.name=serving")
        return {"metadata": {"resourceVersion": "1"}, "items": [self.secret]}

    async def watch(self, *_: object, **__: object) -> AsyncIterator[Json]:
        while True:
            yield await self.events.get()

    def change(self, version: int, **data: str | bytes) -> None:
        self.events.put_nowait({"type": "MODIFIED", "object": secret(version, **data)})

    def delete(self, version: int) -> None:
        self.events.put_nowait({"type": "DELETED", "object": secret(version)})


def secret(version: int, **data: str | bytes) -> Json:
    encoded = {
        name.replace("_", "."): b64encode(it.encode() if isinstance(it, str) else it).decode()
        for name, it in data.items()
    }
    encoded |= {"former-path": encoded.pop("former")} if "former" in encoded else {}
    meta = {"name": "serving", "namespace": "system", "resourceVersion": str(version), "uid": "u"}
    return {"metadata": meta, "data": encoded}


CA = trustme.CA()


def pair(host: str = "one.test") -> dict[str, bytes]:
    issued = CA.issue_cert(host)
    return {
        "tls_crt": issued.cert_chain_pems[0].bytes(),
        "tls_key": issued.private_key_pem.bytes(),
    }


def serving(source: Source) -> ServingSecret:
    return ServingSecret(source, ("system", "serving"))


def serves(secret: ServingSecret, host: str) -> bool:
    """Whether a handshake for `host` succeeds."""
    client = ssl.create_default_context()
    CA.configure_trust(client)
    try:
        handshake(client, secret.context, host)
    except ssl.SSLError:
        return False
    return True


async def until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


async def test_waits_for_missing_values_and_uses_changed_ones() -> None:
    source = Source()
    serving_secret = serving(source)
    async with serving_secret.followed():
        waiting = asyncio.create_task(serving_secret.complete(certificate=True))
        source.change(2, path="first")
        await until(lambda: serving_secret.matches("first"))
        assert not waiting.done()
        source.change(3, path="first", **pair("one.test"))
        await asyncio.wait_for(waiting, 10)
        assert serves(serving_secret, "one.test")
        source.change(4, path="second", former="first", **pair("two.test"))
        await until(lambda: serving_secret.matches("second"))
        assert serving_secret.matches("first")
        assert not serving_secret.matches("")
        assert serves(serving_secret, "two.test")
        assert not serves(serving_secret, "one.test")


async def test_waits_only_for_the_path_if_the_certificate_is_in_files() -> None:
    serving_secret = serving(Source(path="only"))
    async with serving_secret.followed():
        await asyncio.wait_for(serving_secret.complete(certificate=False), 10)


async def test_invalid_or_deleted_values_leave_the_old_ones_in_use(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    source = Source(path="first", **pair("one.test"))
    serving_secret = serving(source)
    async with serving_secret.followed():
        await asyncio.wait_for(serving_secret.complete(certificate=True), 10)
        mixed = pair("two.test") | {"tls_key": pair("three.test")["tls_key"]}
        source.change(2, path="first", **mixed)
        await until(lambda: "can't be loaded" in caplog.text)
        source.change(3)
        source.delete(4)
        await until(lambda: "is gone" in caplog.text)
        assert serving_secret.matches("first")
        assert serves(serving_secret, "one.test")
    assert "PRIVATE" not in caplog.text
