"""The expiry of a certificate, read without a library that is slow to import."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import Final

_SEQUENCE: Final = 0x30
_EXPLICIT_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
_END: Final = "-----END CERTIFICATE-----"


def ends(pem: str) -> float:
    """When the first certificate of ``pem`` expires, in seconds since 1970.

    :raises ValueError: if ``pem`` has no certificate, or a malformed one.
    """
    first, end, _ = pem[max(pem.find("-----BEGIN CERTIFICATE-----"), 0) :].partition(_END)
    try:
        certificate = _inside(ssl.PEM_cert_to_DER_cert(first + end), _SEQUENCE)
        fields = _inside(certificate, _SEQUENCE)
        if fields[0] == _EXPLICIT_VERSION:
            fields = _after(fields)
        for _serial_algorithm_issuer in range(3):
            fields = _after(fields)
        end_of_validity = _after(_inside(fields, _SEQUENCE))
        kind = end_of_validity[0]
        text = _inside(end_of_validity, kind).decode("ascii")
    except IndexError as error:
        raise ValueError("it is cut off") from error
    if kind not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("its validity is not a time")
    # A year of two digits is between 1950 and 2049 (RFC 5280, 4.1.2.5.1).
    century = "" if kind == _GENERALIZED_TIME else "20" if text < "50" else "19"
    return datetime.strptime(century + text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _inside(data: bytes, tag: int) -> bytes:
    """The content of the first ASN.1 element of ``data``."""
    if data[0] != tag:
        raise ValueError(f"it has tag {data[0]:#x} instead of {tag:#x}")
    start, length = _span(data)
    return data[start : start + length]


def _after(data: bytes) -> bytes:
    """The bytes after the first ASN.1 element of ``data``."""
    return data[sum(_span(data)) :]


def _span(data: bytes) -> tuple[int, int]:
    """The offset and the length of the content of the first element, in bytes."""
    length = data[1]
    if length < 0x80:
        return 2, length
    size = length & 0x7F
    return 2 + size, int.from_bytes(data[2 : 2 + size], "big")
