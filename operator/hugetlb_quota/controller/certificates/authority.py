"""Make and read X.509 certificates; all of them are PEM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: A certificate is valid from this long before it was made, because clocks differ.
BACKDATED: Final = timedelta(hours=1)
_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: str
    key: str = field(repr=False)


def make_authority(name: str, now: datetime, lifetime: timedelta) -> Pair:
    """A new CA, which can't sign another CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    # During a rotation two CAs are trusted, so each needs a name of its own.
    subject = _name(f"{name}-{serial % 16**8:08x}")
    builder = (
        _builder(subject, subject, key, serial, now, now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Pair, hosts: Sequence[str], now: datetime, lifetime: timedelta) -> Pair:
    """A new serving certificate for ``hosts``, valid no longer than its CA."""
    issuer = _read(authority.certificate)
    signer = serialization.load_pem_private_key(authority.key.encode(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + lifetime, issuer.not_valid_after_utc)
    names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = (
        _builder(
            _name("hugetlb-quota admission"),
            issuer.subject,
            key,
            x509.random_serial_number(),
            now,
            until,
        )
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(by, critical=False)
    )
    return _pair(builder.sign(signer, hashes.SHA256()), key)


def is_usable(pair: Pair) -> bool:
    """Whether certificate and key can be read and belong together."""
    try:
        key = serialization.load_pem_private_key(pair.key.encode(), password=None)
        return key.public_key() == _read(pair.certificate).public_key()
    except (ValueError, TypeError):
        return False


def is_issued_by(certificate: str, authority: str) -> bool:
    """Whether the CA ``authority`` signed ``certificate``."""
    try:
        _read(certificate).verify_directly_issued_by(_read(authority))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def hosts_of(certificate: str) -> frozenset[str]:
    """The host names that a certificate is valid for; empty if it can't be read."""
    try:
        names = _read(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound):
        return frozenset()
    return frozenset(names.value.get_values_for_type(x509.DNSName))


def expires_at(certificate: str) -> datetime:
    """The end of a certificate's validity."""
    return _read(certificate).not_valid_after_utc


def is_valid(certificate: str, now: datetime) -> bool:
    """Whether ``now`` is in a certificate's validity."""
    read = _read(certificate)
    return read.not_valid_before_utc <= now < read.not_valid_after_utc


def split(bundle: str) -> tuple[str, ...]:
    """The certificates of a PEM bundle in a uniform text; other text is left out."""
    found: list[str] = []
    for part in bundle.split(_BEGIN)[1:]:
        body, end, _ = part.partition(_END)
        try:
            read = _read(f"{_BEGIN}{body}{_END}\n")
        except ValueError:
            continue
        if end and (pem := _pem(read)) not in found:
            found.append(pem)
    return tuple(found)


def join(certificates: Iterable[str]) -> str:
    """A PEM bundle of ``certificates``."""
    return "".join(certificates)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    serial: int,
    now: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(until)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Pair(_pem(certificate), private.decode())


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _read(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())
