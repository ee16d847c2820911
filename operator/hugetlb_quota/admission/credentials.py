"""The serving certificate of admission, and the secret first part of the webhooks' paths.

Both come from one Secret that the program watches. The certificate may come from files instead.
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

from hugetlb_quota.admission.background import in_background
from hugetlb_quota.kube import serving
from hugetlb_quota.kube.certificate import ends
from hugetlb_quota.kube.informer import Informer, Source
from hugetlb_quota.kube.resources import SECRETS

#: The period in which the certificate's files are checked, in seconds. Kubelet takes about a
#: minute to bring a changed Secret into a pod.
CERTIFICATE_PERIOD: Final = 10.0
#: How often the log says that the program waits for the Secret, in seconds.
_LOG_PERIOD: Final = 15.0

logger = logging.getLogger(__name__)


class CertificateFiles:
    """The serving certificate from two files; loaded again when the files change.

    :param certificate: the file with the certificate chain, PEM.
    :param key: the file with the private key, PEM.
    :raises OSError: if a file can't be read.
    :raises SSLError: if the certificate and the key can't be loaded.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self.context = _server_context()
        #: When the loaded certificate expires, in seconds since 1970; None if that can't be read.
        self.ends: float | None = None
        self._loaded_version = self._version()
        self._load()

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Load changed files while the context lasts."""

        async def refresh_for_ever() -> None:
            while True:
                await asyncio.sleep(CERTIFICATE_PERIOD)
                self.refresh()

        async with in_background(certificate=refresh_for_ever()):
            yield

    def refresh(self) -> None:
        """Load changed files; while they do not fit each other, keep the old certificate."""
        try:
            version = self._version()
            if version == self._loaded_version:
                return
            self._load()
        except (OSError, ssl.SSLError) as error:  # half written: the next check finds both files
            logger.warning("The changed certificate can't be loaded yet: %s", error)
            return
        self._loaded_version = version
        logger.info("New connections use the changed certificate.")

    def _load(self) -> None:
        certificate, key = self._files
        _load(self.context, str(certificate), str(key))
        self.ends = _end_of(certificate.read_text)

    def _version(self) -> tuple[tuple[int, int, int], ...]:
        """A value that changes when a file changes.

        Kubelet changes symlinks to the files, so the inode changes even if the time does not.
        """
        stats = [file.stat() for file in self._files]
        return tuple((each.st_mtime_ns, each.st_ino, each.st_size) for each in stats)


class ServingSecret:
    """Certificate and path secret from a watched Secret.

    If the Secret is deleted, or a later version lacks a value or has an invalid certificate, the
    old values stay in use.

    :param where: namespace and name of the Secret.
    """

    def __init__(self, api: Source, where: tuple[str, str]) -> None:
        namespace, name = where
        self._name = f"{namespace}/{name}"
        self.context = _server_context()
        #: When the certificate in use expires, in seconds since 1970; None if there is none.
        self.ends: float | None = None
        self._pair: tuple[bytes, bytes] | None = None
        self._path_secrets: tuple[bytes, ...] = ()
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
        self._secret.on_change(lambda _, data, __: self._use(data))

    def matches(self, part: str) -> bool:
        """Whether ``part`` is the present or the former path secret.

        The time that the comparison takes says nothing about the secrets.
        """
        sent = part.encode(errors="replace")
        matching = [hmac.compare_digest(sent, secret) for secret in self._path_secrets]
        return any(matching)

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Watch the Secret while the context lasts."""
        async with in_background(serving_secret=self._secret.run()):
            yield

    async def complete(self, *, certificate: bool) -> None:
        """Wait until the Secret has all values.

        :param certificate: whether the certificate must come from the Secret.
        """
        while missing := self._missing(certificate):
            self._changed.clear()
            why = f" ({self._secret.trouble})" if self._secret.trouble else ""
            logger.info(
                "Waiting until the leading controller writes %s into Secret %s.%s",
                *(missing, self._name, why),
            )
            try:
                await asyncio.wait_for(self._changed.wait(), _LOG_PERIOD)
            except TimeoutError:
                continue

    def _missing(self, certificate: bool) -> str:
        """The missing values in words; "" if there are none."""
        missing = ["a path"] if not self._path_secrets else []
        missing += ["a certificate"] if certificate and self._pair is None else []
        return " and ".join(missing)

    def _use(self, data: Mapping[str, bytes] | None) -> None:
        """Use the values of a new version of the Secret; None: it was deleted."""
        if data is None:
            logger.warning("Secret %s is gone; its last values stay in use.", self._name)
            return
        paths = [data.get(key, b"").strip() for key in (serving.PATH, serving.FORMER_PATH)]
        if paths[0]:
            self._path_secrets = tuple(filter(None, paths))
        pair = (data.get(serving.CERTIFICATE, b""), data.get(serving.KEY, b""))
        if all(pair) and pair != self._pair:
            self._use_pair(pair)
        self._changed.set()

    def _use_pair(self, pair: tuple[bytes, bytes]) -> None:
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
        logger.info("New connections use the certificate in Secret %s.", self._name)


def _server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _load(context: ssl.SSLContext, certificate: str, key: str) -> None:
    # Try in another context first: OpenSSL replaces the certificate before it finds that the key
    # does not fit.
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    # The server listens with this context, so its next handshakes use the new certificate.
    context.load_cert_chain(certificate, key)


def _end_of(read: Callable[[], str]) -> float | None:
    """When the certificate expires that ``read`` returns; None if that can't be read."""
    try:
        return ends(read())
    except (OSError, ValueError) as error:
        logger.warning("The end of the certificate can't be read: %s", error)
        return None


def _in_memory(content: bytes) -> int:
    """A file descriptor with ``content``, in memory only. OpenSSL reads keys only from files."""
    file = os.memfd_create("serving", os.MFD_CLOEXEC)
    os.write(file, content)
    return file


def _data(raw: dict[str, Any]) -> Mapping[str, bytes]:
    """The values of a Secret that can be decoded, by key."""
    found = {}
    for name, value in (raw.get("data") or {}).items():
        try:
            found[name] = b64decode(value)
        except ValueError:
            continue
    return found
