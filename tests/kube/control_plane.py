"""A Kubernetes control plane on loopback ports, with all its state in a temporary directory.

`ControlPlane` starts and stops the whole. The parts have modules of their own: `endpoints`,
`certificates`, `kubeconfigs`, `service_accounts`, `flags`, `servers`, `etcd_data` and `command`.
"""

from __future__ import annotations

import shutil
import ssl
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.kube import build, service_accounts
from tests.kube.api import Api, Object
from tests.kube.build import Progress
from tests.kube.certificates import Certificates
from tests.kube.command import Command
from tests.kube.endpoints import Endpoints
from tests.kube.etcd_data import EtcdData
from tests.kube.flags import ADMIN, ApiServerOptions, Flags
from tests.kube.kubeconfigs import Kubeconfigs, client_tls
from tests.kube.process import Child
from tests.kube.servers import READY_TIMEOUT, PortTakenError, Servers

ATTEMPTS = 3
"""How often to start, if another process takes a free port before the program binds it."""


class ControlPlane:
    """A running control plane; a context manager that removes all state at its end.

    `assets`: the directory of the programs; by default `build.assets()`.
    `address`: the loopback address of all programs; with "::1", Services are IPv6 too.
    `node_side_address`: an address of this host in a network with nodes that run kubelet.
    kube-apiserver then listens at this address too, and can connect to the kubelets.
    `limited_priority_classes`: pods of these classes need a ResourceQuota for the class in their
    namespace, as in some clouds.
    `apiserver_flags`: more flags of kube-apiserver.
    """

    directory: Path
    logs: Path
    endpoints: Endpoints
    certificates: Certificates
    kubeconfigs: Kubeconfigs
    servers: Servers
    admin_kubeconfig: Path
    api: Api
    """The connection of the administrator (system:masters)."""
    kubectl: Command
    """kubectl, by default as the administrator."""
    helm: Command
    """helm, by default as the administrator."""
    startup_seconds: float

    def __init__(
        self,
        assets: Path | None = None,
        *,
        address: str = "127.0.0.1",
        node_side_address: str | None = None,
        limited_priority_classes: Sequence[str] = (),
        apiserver_flags: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> None:
        self._progress = progress
        self.address = address
        self._options = ApiServerOptions(
            tuple(limited_priority_classes), node_side_address, tuple(apiserver_flags)
        )
        self.assets = assets or build.assets(progress)

    def __enter__(self) -> Self:
        started = time.monotonic()
        self.directory = Path(tempfile.mkdtemp(prefix="hugetlb-quota-kube-"))
        self.logs = self.directory / "logs"
        self.logs.mkdir()
        self.servers = Servers(self.assets, self.directory, self.logs)
        try:
            self.certificates = Certificates(self.directory)
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    self._start(attempt)
                    break
                except PortTakenError:
                    self.servers.stop()
                    if attempt == ATTEMPTS:
                        raise
        except BaseException:
            self.close()
            raise
        self.startup_seconds = time.monotonic() - started
        self._say(f"control plane is up after {self.startup_seconds:.1f} s at {self.server}")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all programs and remove all state; a second call does nothing."""
        self.servers.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    # Addresses and identities

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return self.endpoints.apiserver.url

    @property
    def etcd(self) -> str:
        """The client URL of etcd."""
        return self.endpoints.etcd.url

    @property
    def ca_file(self) -> Path:
        """The CA of the API server, as a PEM file."""
        return self.certificates.ca_file

    def user_kubeconfig(self, user: str, group: str | None = None) -> Path:
        """Make a kubeconfig of a user (and one group): `Kubeconfigs.user`."""
        return self.kubeconfigs.user(user, group)

    def service_account_kubeconfig(
        self, namespace: str, name: str, *, node: str | None = None
    ) -> Path:
        """Make a kubeconfig with a token of `service_accounts.create_token`."""
        token = service_accounts.create_token(self.api, namespace, name, node=node)
        return self.kubeconfigs.service_account(namespace, name, token, node=node)

    def api_for(self, kubeconfig: Path) -> Api:
        """Connect with another identity."""
        return Api.from_kubeconfig(kubeconfig)

    def admin_tls(self) -> ssl.SSLContext:
        """A TLS context with the administrator's certificate, for other clients."""
        return client_tls(self.admin_kubeconfig)

    def create_namespace(self, name: str, labels: dict[str, str] | None = None) -> Object:
        """Make a namespace, and wait for its ServiceAccount "default", which pods need."""
        metadata = {"name": name, "labels": labels or {}}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        created = self.api.create("v1/namespaces", namespace)
        service_accounts.wait_for_default(self.api, name)
        return created

    # Programs

    def child(self, program: str) -> Child:
        """The process of "etcd", "kube-apiserver" and so on."""
        return self.servers.children[program]

    def start_again(self, program: str) -> None:
        """Start an ended program again with the same data and port; it is not ready yet."""
        self.servers.start_again(program)

    def back_up(self) -> Path:
        """Copy etcd's present data; return the directory of the copy."""
        backup = Path(tempfile.mkdtemp(prefix="backup-", dir=self.directory)) / "data"
        self._data.back_up(self.child("etcd"), backup)
        return backup

    def restore(self, backup: Path) -> None:
        """Restart etcd and kube-apiserver with the data of `backup`; resourceVersions go back."""
        for program in ("kube-apiserver", "etcd"):
            self.child(program).kill9()
        self._data.restore(backup)
        self._start_api_server()

    def _start(self, attempt: int) -> None:
        self.endpoints = Endpoints.free(self.address)
        self.kubeconfigs = Kubeconfigs(self.directory, self.server, self.certificates)
        self.admin_kubeconfig = self.kubeconfigs.user("admin", ADMIN)
        self.kubectl = self._command("kubectl", timeout=60)
        self.helm = self._command("helm", timeout=120)
        self._flags = Flags(self.directory, self.endpoints, self.certificates, self.kubeconfigs)
        self._data = EtcdData(self.directory / f"etcd-{attempt}")
        self._start_api_server()
        self.api = Api.from_kubeconfig(self.admin_kubeconfig)
        self._start_controllers()
        service_accounts.wait_for_default(self.api, "default", READY_TIMEOUT)

    def _start_api_server(self) -> None:
        self._say("starting etcd")
        self.servers.start("etcd", self._flags.etcd(self._data.directory))
        self._wait_ready("etcd", f"{self.etcd}/readyz")
        self._say("starting kube-apiserver")
        self.servers.start("kube-apiserver", self._flags.apiserver(self._options))
        self._wait_ready("kube-apiserver", f"{self.server}/readyz")

    def _start_controllers(self) -> None:
        self._say("starting kube-scheduler and kube-controller-manager")
        self.servers.start("kube-scheduler", self._flags.scheduler())
        self.servers.start("kube-controller-manager", self._flags.controller_manager())
        scheduler, manager = self.endpoints.scheduler, self.endpoints.controller_manager
        self._wait_ready("kube-scheduler", f"{scheduler.url}/readyz")
        self._wait_ready("kube-controller-manager", f"{manager.url}/healthz")

    def _wait_ready(self, program: str, url: str) -> None:
        self.servers.wait_ready(program, url, self.certificates.tls())

    def _command(self, program: str, *, timeout: float) -> Command:
        return Command(self.assets / program, self.directory, self.admin_kubeconfig, timeout)

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._progress(text)
