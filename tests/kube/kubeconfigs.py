"""The kubeconfigs of users and ServiceAccounts."""

from __future__ import annotations

import ssl
from pathlib import Path

import yaml

from tests.kube.certificates import Certificates


class Kubeconfigs:
    """Writes kubeconfigs to `directory`. `server`: the URL of the API server."""

    def __init__(self, directory: Path, server: str, certificates: Certificates) -> None:
        self._directory = directory
        self._server = server
        self._certificates = certificates

    def user(self, user: str, group: str | None = None) -> Path:
        """Make a kubeconfig with a client certificate of a user (and one group).

        A kubelet is the user "system:node:NAME" in the group "system:nodes".
        """
        pair = self._certificates.user(user, group)
        credentials = {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
        return self._written(pair.certificate.stem, credentials)

    def service_account(
        self, namespace: str, name: str, token: str, *, node: str | None = None
    ) -> Path:
        """Make a kubeconfig with a ServiceAccount's token; `node`: the Node of the token."""
        stem = f"sa-{namespace}-{name}" + (f"-{node}" if node else "")
        return self._written(stem, {"token": token})

    def _written(self, name: str, credentials: dict[str, str]) -> Path:
        path = self._directory / f"{name}.kubeconfig"
        ca_file = str(self._certificates.ca_file)
        cluster = {"server": self._server, "certificate-authority": ca_file}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": credentials}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        }
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config))
        return path


def client_tls(kubeconfig: Path) -> ssl.SSLContext:
    """A TLS context with the CA and the client certificate of a kubeconfig of `Kubeconfigs`."""
    config = yaml.safe_load(kubeconfig.read_text())
    (cluster,), (user,) = config["clusters"], config["users"]
    context = ssl.create_default_context(cafile=cluster["cluster"]["certificate-authority"])
    context.load_cert_chain(user["user"]["client-certificate"], user["user"]["client-key"])
    return context
