"""The expiry of a certificate, compared with the library that made the certificate."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import trustme

from hugetlb_quota.kube.certificate import ends


@pytest.mark.parametrize("year", [2027, 2049, 2050, 2151])
def test_the_expiry_of_the_first_certificate(year: int) -> None:
    at = datetime(year, 11, 26, 13, 20, 59, tzinfo=UTC)
    ca = trustme.CA()
    issued = ca.issue_cert("example.test", not_after=at)
    chain = [blob.bytes().decode() for blob in issued.cert_chain_pems]
    assert ends("".join([*chain, ca.cert_pem.bytes().decode()])) == at.timestamp()
    assert ends(f"subject=/CN=a\n{chain[0]}") == at.timestamp()


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nMDAwMA==\n-----END CERTIFICATE-----\n",
    ],
)
def test_a_malformed_certificate_is_refused(pem: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ends(pem)
