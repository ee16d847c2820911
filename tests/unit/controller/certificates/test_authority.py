"""CAs and serving certificates: their validity, and the fields that the controller reads."""

from __future__ import annotations

import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from hugetlb_quota.controller.certificates import authority
from hugetlb_quota.controller.certificates.authority import BACKDATED
from tests.unit.handshake import handshake

HOST = "admission.system.svc"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
CA = authority.make_authority("ca", BEGAN, 10 * DAY)
OTHER_CA = authority.make_authority("ca", BEGAN, 10 * DAY)
SERVING = authority.issue(CA, (HOST, "admission"), BEGAN, DAY)
NO_CERTIFICATE = "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n"


def test_two_cas_of_one_name_have_different_subjects() -> None:
    """During a rotation two CAs are trusted. A verifier looks for the issuer by its subject."""
    subjects = {
        x509.load_pem_x509_certificate(each.certificate.encode()).subject.rfc4514_string()
        for each in (CA, OTHER_CA)
    }
    assert len(subjects) == 2
    assert all(subject.startswith("CN=ca-") for subject in subjects)


@pytest.mark.parametrize("pair", [CA, SERVING], ids=["CA", "serving"])
def test_a_certificate_is_valid_a_little_before_it_was_made(pair: authority.Pair) -> None:
    assert authority.is_valid(pair.certificate, BEGAN - BACKDATED)
    assert not authority.is_valid(pair.certificate, BEGAN - BACKDATED - DAY)


def test_a_certificate_is_valid_until_its_end() -> None:
    assert authority.expires_at(SERVING.certificate) == BEGAN + DAY
    assert authority.is_valid(SERVING.certificate, BEGAN + DAY - timedelta(seconds=1))
    assert not authority.is_valid(SERVING.certificate, BEGAN + DAY)


def test_a_serving_certificate_ends_no_later_than_its_ca() -> None:
    long = authority.issue(CA, (HOST,), BEGAN + 5 * DAY, 30 * DAY)
    assert authority.expires_at(long.certificate) == BEGAN + 10 * DAY


def test_the_hosts_of_a_certificate_are_read() -> None:
    assert authority.hosts_of(SERVING.certificate) == {HOST, "admission"}
    assert authority.hosts_of(CA.certificate) == frozenset()
    assert authority.hosts_of("no certificate") == frozenset()


def test_the_issuer_of_a_certificate_is_recognized() -> None:
    assert authority.is_issued_by(SERVING.certificate, CA.certificate)
    assert not authority.is_issued_by(SERVING.certificate, OTHER_CA.certificate)
    assert not authority.is_issued_by("no certificate", CA.certificate)
    assert not authority.is_issued_by(SERVING.certificate, "no certificate")


def test_only_a_ca_may_sign_and_a_ca_may_not_sign_another_ca() -> None:
    ca, serving = (
        x509.load_pem_x509_certificate(each.certificate.encode())
        .extensions.get_extension_for_class(x509.BasicConstraints)
        .value
        for each in (CA, SERVING)
    )
    assert (ca.ca, ca.path_length) == (True, 0)
    assert not serving.ca


@pytest.mark.parametrize(
    "pair",
    [
        replace(SERVING, key=CA.key),
        replace(SERVING, key="no key"),
        replace(SERVING, certificate="no certificate"),
        replace(SERVING, certificate="", key=""),
    ],
    ids=["key of another", "no key", "no certificate", "empty"],
)
def test_a_certificate_and_a_key_of_different_pairs_are_not_usable(pair: authority.Pair) -> None:
    assert authority.is_usable(SERVING)
    assert not authority.is_usable(pair)


def test_a_key_is_not_in_the_text_of_a_pair() -> None:
    assert "PRIVATE KEY" in SERVING.key
    assert "PRIVATE KEY" not in repr(SERVING)


def test_a_bundle_is_split_into_its_certificates_in_order() -> None:
    bundle = authority.join([CA.certificate, OTHER_CA.certificate])
    assert authority.split(bundle) == (CA.certificate, OTHER_CA.certificate)


def test_other_text_in_a_bundle_and_repeated_certificates_are_left_out() -> None:
    indented = CA.certificate.replace("\n", "\r\n")
    cut = OTHER_CA.certificate.partition("-----END")[0]
    bundle = f"# A comment\n{CA.certificate}{NO_CERTIFICATE}\n{indented}{cut}"
    assert authority.split(bundle) == (CA.certificate,)
    assert authority.split("") == ()


def test_openssl_accepts_the_certificates(tmp_path: Path) -> None:
    """A TLS handshake with OpenSSL's strictest checks, as in the leader's probe of admission."""
    ca = authority.make_authority("ca", datetime.now(UTC), timedelta(days=1))
    pair = authority.issue(ca, (HOST,), datetime.now(UTC), timedelta(days=1))
    client = ssl.create_default_context(cadata=ca.certificate)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    (tmp_path / "c").write_text(pair.certificate)
    (tmp_path / "k").write_text(pair.key)
    server.load_cert_chain(tmp_path / "c", tmp_path / "k")
    assert handshake(client, server, HOST).getpeercert()
