"""What admission serves with, followed in a Secret."""

from __future__ import annotations

import asyncio
import logging
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import trustme

from hugetlb_quota.admission.identity import Identity
from hugetlb_quota.kube.resources import Resource

Json = dict[str, Any]


class Source:
    """One Secret; `change` is told to who watches."""

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


def identity(source: Source) -> Identity:
    return Identity(source, ("system", "serving"))


def served(identity: Identity, host: str) -> bool:
    """Whether a handshake for `host` succeeds."""
    client = ssl.create_default_context()
    CA.configure_trust(client)
    here, there, back, forth = (ssl.MemoryBIO() for _ in range(4))
    one = client.wrap_bio(here, there, server_hostname=host)
    other = identity.context.wrap_bio(back, forth, server_side=True)
    try:
        for _ in range(4):
            for end in (one, other):
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                back.write(there.read())
                here.write(forth.read())
    except ssl.SSLError:
        return False
    return True


async def until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


async def test_it_waits_for_what_is_missing_and_takes_up_what_changes() -> None:
    source = Source()
    known = identity(source)
    async with known.followed():
        waiting = asyncio.create_task(known.complete(certificate=True))
        source.change(2, path="first")
        await until(lambda: known.matches("first"))
        assert not waiting.done()
        source.change(3, path="first", **pair("one.test"))
        await asyncio.wait_for(waiting, 10)
        assert served(known, "one.test")
        source.change(4, path="second", former="first", **pair("two.test"))
        await until(lambda: known.matches("second"))
        assert known.matches("first")
        assert not known.matches("")
        assert served(known, "two.test")
        assert not served(known, "one.test")


async def test_with_a_certificate_from_elsewhere_the_path_is_enough() -> None:
    known = identity(Source(path="only"))
    async with known.followed():
        await asyncio.wait_for(known.complete(certificate=False), 10)


async def test_what_is_broken_or_gone_leaves_in_force_what_there_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    source = Source(path="first", **pair("one.test"))
    known = identity(source)
    async with known.followed():
        await asyncio.wait_for(known.complete(certificate=True), 10)
        mixed = pair("two.test") | {"tls_key": pair("three.test")["tls_key"]}
        source.change(2, path="first", **mixed)
        await until(lambda: "can't be loaded" in caplog.text)
        source.change(3)
        source.delete(4)
        await until(lambda: "is gone" in caplog.text)
        assert known.matches("first")
        assert served(known, "one.test")
    assert "PRIVATE" not in caplog.text
