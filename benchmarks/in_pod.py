"""The agent as in a pod: with a ServiceAccount, over TLS, without the kubernetes package."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

import trustme

from tests.kernel.agent_process import Agent, Api

_PROGRAM = (
    "from pathlib import Path\n"
    "from hugetlb_quota.kube import transport\n"
    "transport.ACCOUNT = Path({account!r})\n"
    "from hugetlb_quota.agent.__main__ import main\n"
    "main()\n"
)


def secure_api(directory: Path) -> tuple[Api, Path]:
    """A fake API server, and the directory of a ServiceAccount, both below ``directory``."""
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    account = directory / "account"
    account.mkdir()
    authority.cert_pem.write_to_path(str(account / "ca.crt"))
    (account / "token").write_text("token")
    return Api(directory / "kubeconfig", tls), account


class PodAgent(Agent):
    """An agent with a ServiceAccount. ``account``: the directory of the ServiceAccount."""

    def __init__(self, api: Api, subtree: Path, log: Path, account: Path) -> None:
        super().__init__(api, subtree, log)
        self.program = [sys.executable, "-c", _PROGRAM.format(account=str(account))]

    def environment(self) -> dict[str, str]:
        """The environment variables that kubelet sets."""
        return {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self.api.port),
            "HOME": str(self.log.parent),
        }
