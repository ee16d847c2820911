"""Read and write the certificates' state in two Secrets and in the webhook configuration."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from hugetlb_quota.controller.certificates import authority
from hugetlb_quota.controller.certificates.authority import Pair
from hugetlb_quota.controller.certificates.state import Authorities, Serving, Trust
from hugetlb_quota.kube import serving as names

Json = dict[str, Any]

#: The annotation on the Secret of the CA, with any value: make a new CA, certificate and path.
ROTATE: Final = "hugetlb.dev/rotate"


def read_authorities(secret: Mapping[str, Any]) -> Authorities:
    """The CAs in a Secret; a part that can't be read counts as missing."""
    data = _decoded(secret)
    annotations = (secret.get("metadata") or {}).get("annotations") or {}
    return Authorities(
        current=_pair(data, "ca.crt", "ca.key"),
        trusted_since=_time(data, "trusted-since"),
        next=_pair(data, "next-ca.crt", "next-ca.key"),
        next_trusted_since=_time(data, "next-trusted-since"),
        retired=authority.split(data.get("retired-ca.crt", "")),
        served_since=_time(data, "served-since"),
        rotation_requested=ROTATE in annotations,
    )


def write_authorities(secret: Mapping[str, Any], ca: Authorities) -> Json:
    """A copy of the Secret with these CAs."""
    metadata = dict(secret["metadata"])
    annotations = dict(metadata.get("annotations") or {})
    if not ca.rotation_requested:
        annotations.pop(ROTATE, None)
    metadata["annotations"] = annotations
    data = {
        "trusted-since": _stamp(ca.trusted_since),
        "next-trusted-since": _stamp(ca.next_trusted_since),
        "retired-ca.crt": authority.join(ca.retired),
        "served-since": _stamp(ca.served_since),
    }
    for pair, prefix in ((ca.current, "ca"), (ca.next, "next-ca")):
        if pair is not None:
            data |= {f"{prefix}.crt": pair.certificate, f"{prefix}.key": pair.key}
    return {**secret, "metadata": metadata, "data": _encoded(data)}


def read_serving(secret: Mapping[str, Any]) -> Serving:
    """Admission's certificate and paths; a part that can't be read counts as missing."""
    data = _decoded(secret)
    return Serving(
        pair=_pair(data, names.CERTIFICATE, names.KEY),
        path=data.get(names.PATH, ""),
        former_path=data.get(names.FORMER_PATH, ""),
        path_since=_time(data, "path-since"),
    )


def write_serving(secret: Mapping[str, Any], serving: Serving) -> Json:
    """A copy of the Secret with this certificate and these paths."""
    data = {
        names.PATH: serving.path,
        names.FORMER_PATH: serving.former_path,
        "path-since": _stamp(serving.path_since),
    }
    if serving.pair is not None:
        data |= {names.CERTIFICATE: serving.pair.certificate, names.KEY: serving.pair.key}
    return {**secret, "data": _encoded(data)}


def read_trust(configuration: Mapping[str, Any]) -> Trust:
    """CAs and path of a webhook configuration; if the webhooks differ, the CAs of all webhooks."""
    clients = [each.get("clientConfig") or {} for each in configuration.get("webhooks") or ()]
    bundles = {authority.split(_text(client.get("caBundle"))) for client in clients}
    paths = {_path_secret(client) for client in clients}
    uniform = len(bundles) <= 1 and len(paths) <= 1
    certificates = dict.fromkeys(each for bundle in sorted(bundles) for each in bundle)
    return Trust(tuple(certificates), max(paths, default=""), uniform=uniform)


def write_trust(configuration: Mapping[str, Any], trust: Trust, *, bundle: bool = True) -> Json:
    """A copy of the webhook configuration with this path, and with these CAs if ``bundle``."""
    ca = b64encode(authority.join(trust.bundle).encode()).decode()
    webhooks = []
    for webhook in configuration["webhooks"]:
        client = dict(webhook["clientConfig"])
        if bundle:
            client["caBundle"] = ca
        path = f"/{trust.path}/{names.PATHS[webhook['name']]}"
        client["service"] = {**client["service"], "path": path}
        webhooks.append({**webhook, "clientConfig": client})
    return {**configuration, "webhooks": webhooks}


def _path_secret(client: Mapping[str, Any]) -> str:
    path = str((client.get("service") or {}).get("path") or "")
    return path.removeprefix("/").partition("/")[0]


def _pair(data: Mapping[str, str], certificate: str, key: str) -> Pair | None:
    pair = Pair(data.get(certificate, ""), data.get(key, ""))
    return pair if authority.is_usable(pair) else None


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
