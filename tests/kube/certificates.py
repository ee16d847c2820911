"""The CA of a control plane, and the certificates of servers and users."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

import trustme


class KeyPair(NamedTuple):
    """The files of a certificate and its key."""

    certificate: Path
    key: Path


class Certificates:
    """A new CA; its files and those of the issued certificates are in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca_file)
        # ServiceAccount tokens are signed with an RSA key; trustme's default is an elliptic curve.
        signer = self._ca.issue_cert("service-account.test", key_type=trustme.KeyType.RSA)
        self.service_account_key = directory / "service-account.key"
        signer.private_key_pem.write_to_path(self.service_account_key)

    def server(self, name: str, *hosts: str) -> KeyPair:
        """Issue the certificate of a server at `hosts`."""
        return self._written(name, self._ca.issue_cert(*hosts))

    def user(self, user: str, group: str | None = None) -> KeyPair:
        """Issue the client certificate of a user (and one group)."""
        issued = self._ca.issue_cert("user.test", common_name=user, organization_name=group)
        return self._written(f"user-{user}-{group or 'alone'}".replace(":", "-"), issued)

    def tls(self) -> ssl.SSLContext:
        """A TLS context of a client that trusts this CA."""
        return ssl.create_default_context(cafile=str(self.ca_file))

    def _written(self, name: str, issued: trustme.LeafCert) -> KeyPair:
        pair = KeyPair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        pair.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(pair.key)
        pair.key.chmod(0o600)
        return pair
