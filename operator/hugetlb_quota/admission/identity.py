"""What admission serves with: its certificate, and what the webhooks' paths begin with.

Both come from one Secret, which is followed; the certificate may come from files instead.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from hugetlb_quota.kube import serving
from hugetlb_quota.kube.certificate import ends
from hugetlb_quota.kube.informer import Informer, Source
from hugetlb_quota.kube.resources import SECRETS

#: How often the certificate's files are looked at, in seconds. Kubelet itself takes about
#: a minute to bring a changed Secret.
CERTIFICATE_PERIOD: Final = 10.0
#: Seconds between lines of the log while the Secret is waited for.
_TELL_AGAIN: Final = 15.0

logger = logging.getLogger(__name__)


class Certificate:
    """The serving certificate; taken up anew when its files change."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self.context = _server_context()
        #: When what was taken up ends, in seconds since 1970; None where that can't be read.
        self.ends: float | None = None
        self._loaded = self._stamp()
        self._load()

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Look for changed files now and then while the context lasts."""

        async def look() -> None:
            while True:
                await asyncio.sleep(CERTIFICATE_PERIOD)
                self.refresh()

        looking = asyncio.create_task(look(), name="certificate")
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def refresh(self) -> None:
        """Take up changed files; while they do not fit each other, keep what there is."""
        try:
            stamp = self._stamp()
            if stamp == self._loaded:
                return
            self._load()
        except (OSError, ssl.SSLError) as error:  # half written: the next look finds it whole
            logger.warning("The changed certificate can't be loaded yet: %s", error)
            return
        self._loaded = stamp
        logger.info("The changed certificate is in use for new connections.")

    def _load(self) -> None:
        certificate, key = self._files
        _load(self.context, str(certificate), str(key))
        self.ends = _end_of(certificate.read_text)

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        # Through kubelet's symlinks, which it swaps: the inode tells even if the time does not.
        stats = [file.stat() for file in self._files]
        return tuple((each.st_mtime_ns, each.st_ino, each.st_size) for each in stats)


class Identity:
    """What a Secret says to serve with; taken up anew within moments of its change.

    What is missing or broken in a later state of the Secret, and a Secret that is gone, leave in
    force what there is.

    :param where: namespace and name of the Secret.
    """

    def __init__(self, api: Source, where: tuple[str, str]) -> None:
        namespace, name = where
        self._name = f"{namespace}/{name}"
        self.context = _server_context()
        #: When what is served ends, in seconds since 1970; None before there is any.
        self.ends: float | None = None
        self._pair: tuple[bytes, bytes] | None = None
        self._paths: tuple[bytes, ...] = ()
        self._changed = asyncio.Event()
        self._secret = Informer(
            api,
            SECRETS,
            _data,
            namespace=namespace,
            field_selector=f"metadata.name={name}",
            name=f"Secret {self._name}",
            longest_backoff=5.0,
        )
        self._secret.on_change(lambda _, data, __: self._take(data))

    def matches(self, told: str) -> bool:
        """Whether ``told`` begins the webhooks' paths; takes the same time whatever it is."""
        sent = told.encode(errors="replace")
        matching = [hmac.compare_digest(sent, known) for known in self._paths]
        return any(matching)

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Follow the Secret while the context lasts."""
        following = asyncio.create_task(self._secret.run(), name="serving secret")
        try:
            yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def complete(self, *, certificate: bool) -> None:
        """Wait until there is all to serve with.

        :param certificate: False where the certificate comes from elsewhere.
        """
        while missing := self._missing(certificate):
            self._changed.clear()
            why = f" ({self._secret.trouble})" if self._secret.trouble else ""
            logger.info(
                "Waiting for %s in Secret %s, which the controller that leads puts there.%s",
                *(missing, self._name, why),
            )
            try:
                await asyncio.wait_for(self._changed.wait(), _TELL_AGAIN)
            except TimeoutError:
                continue

    def _missing(self, certificate: bool) -> str:
        lacking = ["a path"] if not self._paths else []
        lacking += ["a certificate"] if certificate and self._pair is None else []
        return " and ".join(lacking)

    def _take(self, data: Mapping[str, bytes] | None) -> None:
        if data is None:
            logger.warning("Secret %s is gone; what it held stays in use.", self._name)
            return
        paths = [data.get(key, b"").strip() for key in (serving.PATH, serving.FORMER_PATH)]
        if paths[0]:
            self._paths = tuple(filter(None, paths))
        pair = (data.get(serving.CERTIFICATE, b""), data.get(serving.KEY, b""))
        if all(pair) and pair != self._pair:
            self._take_pair(pair)
        self._changed.set()

    def _take_pair(self, pair: tuple[bytes, bytes]) -> None:
        certificate, key = (_in_memory(each) for each in pair)
        try:
            _load(self.context, *(f"/proc/self/fd/{each}" for each in (certificate, key)))
        except (OSError, ssl.SSLError) as error:
            logger.warning("The certificate in Secret %s can't be loaded: %s", self._name, error)
            return
        finally:
            os.close(certificate)
            os.close(key)
        self._pair = pair
        self.ends = _end_of(pair[0].decode)
        logger.info("The certificate in Secret %s is in use for new connections.", self._name)


def _server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _load(context: ssl.SSLContext, certificate: str, key: str) -> None:
    # Tried first: a certificate that does not fit its key takes the place of the old
    # one before OpenSSL refuses it.
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    # On the very context the server listens with: its next handshakes use it.
    context.load_cert_chain(certificate, key)


def _end_of(read: Callable[[], str]) -> float | None:
    try:
        return ends(read())
    except (OSError, ValueError) as error:
        logger.warning("When the certificate ends can't be read: %s", error)
        return None


def _in_memory(content: bytes) -> int:
    """A file that no other process sees and no disk holds: OpenSSL reads keys from files alone."""
    file = os.memfd_create("serving", os.MFD_CLOEXEC)
    os.write(file, content)
    return file


def _data(raw: dict[str, Any]) -> Mapping[str, bytes]:
    found = {}
    for name, value in (raw.get("data") or {}).items():
        try:
            found[name] = b64decode(value)
        except ValueError:
            continue
    return found
