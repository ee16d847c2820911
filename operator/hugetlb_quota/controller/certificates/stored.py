"""The certificates as they are kept: in two Secrets, and in the webhook configuration."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from hugetlb_quota.controller.certificates import authority
from hugetlb_quota.controller.certificates.authority import Pair
from hugetlb_quota.controller.certificates.rotation import Authority, Serving, Trust
from hugetlb_quota.kube import serving as names

Json = dict[str, Any]

#: An annotation on the CA's Secret, whatever its value: make a new CA, certificate and path.
ROTATE: Final = "hugetlb.dev/rotate"


def read_authority(secret: Mapping[str, Any]) -> Authority:
    """The CAs of a Secret; what of it can't be read is not there."""
    data = _decoded(secret)
    asked = ROTATE in ((secret.get("metadata") or {}).get("annotations") or {})
    return Authority(
        current=_pair(data, "ca.crt", "ca.key"),
        trusted_since=_time(data, "trusted-since"),
        coming=_pair(data, "next-ca.crt", "next-ca.key"),
        coming_trusted_since=_time(data, "next-trusted-since"),
        retired=authority.split(data.get("retired-ca.crt", "")),
        served_since=_time(data, "served-since"),
        asked=asked,
    )


def write_authority(secret: Mapping[str, Any], to: Authority) -> Json:
    """The Secret with these CAs in it."""
    metadata = dict(secret["metadata"])
    annotations = dict(metadata.get("annotations") or {})
    if not to.asked:
        annotations.pop(ROTATE, None)
    metadata["annotations"] = annotations
    data = {
        "trusted-since": _stamp(to.trusted_since),
        "next-trusted-since": _stamp(to.coming_trusted_since),
        "retired-ca.crt": authority.join(to.retired),
        "served-since": _stamp(to.served_since),
    }
    for pair, prefix in ((to.current, "ca"), (to.coming, "next-ca")):
        if pair is not None:
            data |= {f"{prefix}.crt": pair.certificate, f"{prefix}.key": pair.key}
    return {**secret, "metadata": metadata, "data": _encoded(data)}


def read_serving(secret: Mapping[str, Any]) -> Serving:
    """What admission serves with; what of it can't be read is not there."""
    data = _decoded(secret)
    return Serving(
        pair=_pair(data, names.CERTIFICATE, names.KEY),
        path=data.get(names.PATH, ""),
        former_path=data.get(names.FORMER_PATH, ""),
        path_since=_time(data, "path-since"),
    )


def write_serving(secret: Mapping[str, Any], to: Serving) -> Json:
    """The Secret with this in it."""
    data = {
        names.PATH: to.path,
        names.FORMER_PATH: to.former_path,
        "path-since": _stamp(to.path_since),
    }
    if to.pair is not None:
        data |= {names.CERTIFICATE: to.pair.certificate, names.KEY: to.pair.key}
    return {**secret, "data": _encoded(data)}


def read_trust(configuration: Mapping[str, Any]) -> Trust:
    """What the API server is told; where the webhooks differ, of all their CAs."""
    clients = [each.get("clientConfig") or {} for each in configuration.get("webhooks") or ()]
    bundles = {authority.split(_text(client.get("caBundle"))) for client in clients}
    paths = {_path_secret(client) for client in clients}
    alike = len(bundles) <= 1 and len(paths) <= 1
    every = dict.fromkeys(each for bundle in sorted(bundles) for each in bundle)
    return Trust(tuple(every), max(paths, default=""), everywhere=alike)


def write_trust(configuration: Mapping[str, Any], to: Trust, *, bundle: bool = True) -> Json:
    """The configuration that tells of this.

    :param bundle: False leaves the CAs as they are.
    """
    ca = b64encode(authority.join(to.bundle).encode()).decode()
    webhooks = []
    for webhook in configuration["webhooks"]:
        client = dict(webhook["clientConfig"])
        if bundle:
            client["caBundle"] = ca
        path = f"/{to.path}/{names.PATHS[webhook['name']]}"
        client["service"] = {**client["service"], "path": path}
        webhooks.append({**webhook, "clientConfig": client})
    return {**configuration, "webhooks": webhooks}


def _path_secret(client: Mapping[str, Any]) -> str:
    path = str((client.get("service") or {}).get("path") or "")
    return path.removeprefix("/").partition("/")[0]


def _pair(data: Mapping[str, str], certificate: str, key: str) -> Pair | None:
    pair = Pair(data.get(certificate, ""), data.get(key, ""))
    return pair if authority.is_whole(pair) else None


def _decoded(secret: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value) for name, value in (secret.get("data") or {}).items()}


def _text(value: Any) -> str:
    try:
        return b64decode(value or "").decode()
    except (NotBase64, UnicodeDecodeError, TypeError, ValueError):
        return ""


def _encoded(data: Mapping[str, str]) -> Json:
    return {name: b64encode(text.encode()).decode() for name, text in data.items() if text}


def _time(data: Mapping[str, str], name: str) -> datetime | None:
    try:
        read = datetime.fromisoformat(data.get(name, ""))
    except ValueError:
        return None
    return read if read.tzinfo is not None else None


def _stamp(when: datetime | None) -> str:
    return "" if when is None else when.isoformat()
