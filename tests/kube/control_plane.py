"""etcd, kube-apiserver, kube-scheduler and kube-controller-manager as child processes.

RBAC is on, and the programs listen on free loopback ports. All state is in a temporary directory
that the context manager removes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import trustme
import yaml

from tests.kube import build
from tests.kube.api import Api, ApiError, Object
from tests.kube.process import Child, ProgramError, free_ports

Progress = Callable[[str], None]

ADMIN = "system:masters"
READY_TIMEOUT = 60.0
"""For each program, in seconds; on two idle cores the slowest program needs about five."""

ATTEMPTS = 3
"""How often to start, if another process takes a free port before the program binds it."""

SERVICES = ("10.96.0.0/16", "fd00:10:96::/112")
"""The ranges of Service addresses, for IPv4 and for IPv6."""

NODE_GRACE = "300s"
"""How long a test node may miss heartbeats, so that a busy machine evicts no pods."""


class PortTakenError(Exception):
    """Another process took a free port before the program bound it."""


@dataclass(frozen=True)
class Ports:
    etcd: int
    etcd_peer: int
    apiserver: int
    scheduler: int
    controller_manager: int


class ControlPlane:
    """A running control plane; a context manager.

    `assets`: the directory of the programs; by default `build.assets()`.
    `address`: the loopback address of all programs; with "::1", Services are IPv6 too.
    `limited_priority_classes`: pods of these classes need a ResourceQuota for the class in their
    namespace, as in some clouds.
    `apiserver_flags`: more flags of kube-apiserver.
    """

    api: Api
    """The connection of the administrator (system:masters)."""
    admin_kubeconfig: Path
    server: str
    etcd: str
    """The client URL of etcd."""
    startup_seconds: float

    def __init__(
        self,
        assets: Path | None = None,
        *,
        address: str = "127.0.0.1",
        limited_priority_classes: Sequence[str] = (),
        apiserver_flags: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> None:
        self._progress = progress
        self.address = address
        self._limited = tuple(limited_priority_classes)
        self._more_flags = tuple(apiserver_flags)
        self.assets = assets or build.assets(progress)
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        started = time.monotonic()
        self.directory = Path(tempfile.mkdtemp(prefix="hugetlb-quota-kube-"))
        self.logs = self.directory / "logs"
        self.logs.mkdir()
        try:
            self._make_identities()
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    self._start(Ports(*free_ports(5, self.address)), attempt)
                    break
                except PortTakenError:
                    self._stop_children()
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
        self._stop_children()
        shutil.rmtree(self.directory, ignore_errors=True)

    def back_up(self) -> Path:
        """Copy etcd's present data; return the directory of the copy."""
        (etcd,) = [child for child in self._children if child.name == "etcd"]
        backup = Path(tempfile.mkdtemp(prefix="backup-", dir=self.directory)) / "data"
        # Pause etcd during the copy. The copy is like the data after a crash, which etcd accepts.
        os.kill(etcd.pid, signal.SIGSTOP)
        try:
            shutil.copytree(self._data, backup)
        finally:
            os.kill(etcd.pid, signal.SIGCONT)
        return backup

    def restore(self, backup: Path) -> None:
        """Restart etcd and kube-apiserver with the data of `backup`; resourceVersions go back."""
        for name in ("kube-apiserver", "etcd"):
            (child,) = [child for child in self._children if child.name == name]
            child.kill9()
            self._children.remove(child)
        shutil.rmtree(self._data)
        shutil.copytree(backup, self._data)
        self._start_servers(self._ports)

    # Identities

    @property
    def ca_file(self) -> Path:
        """The CA of the API server and of `serving_certificate`, as a PEM file."""
        return self.directory / "ca.pem"

    def serving_certificate(self, name: str, *hosts: str) -> tuple[Path, Path]:
        """Make certificate and key files of a server, by default for `address`."""
        issued = self._ca.issue_cert(*(hosts or (self.address, "localhost")))
        cert, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        cert.unlink(missing_ok=True)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(cert, append=True)
        issued.private_key_pem.write_to_path(key)
        key.chmod(0o600)
        return cert, key

    def user_kubeconfig(self, user: str, group: str | None = None) -> Path:
        """Make a kubeconfig with a client certificate of a user (and one group).

        A kubelet is the user "system:node:NAME" in the group "system:nodes".
        """
        issued = self._ca.issue_cert("user.test", common_name=user, organization_name=group)
        stem = f"user-{user}-{group or 'alone'}".replace(":", "-")
        cert, key = self.directory / f"{stem}.pem", self.directory / f"{stem}.key"
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
        key.chmod(0o600)
        return self._kubeconfig(stem, {"client-certificate": str(cert), "client-key": str(key)})

    def service_account_kubeconfig(
        self, namespace: str, name: str, *, node: str | None = None
    ) -> Path:
        """Make a kubeconfig with a token of `service_account_token`."""
        stem = f"sa-{namespace}-{name}" + (f"-{node}" if node else "")
        token = self.service_account_token(namespace, name, node=node)
        return self._kubeconfig(stem, {"token": token})

    def service_account_token(self, namespace: str, name: str, *, node: str | None = None) -> str:
        """Make a new token of the ServiceAccount, valid for a day.

        With `node`, the token is bound to that Node, as kubelet's tokens for pods are: the API
        server then sets the user's `authentication.kubernetes.io/node-name`.
        """
        spec: Object = {"expirationSeconds": 24 * 3600}
        if node is not None:
            uid = self.api.get("v1/nodes", node)["metadata"]["uid"]
            spec["boundObjectRef"] = {
                "apiVersion": "v1",
                "kind": "Node",
                "name": node,
                "uid": uid,
            }
        answer = self.api.create(
            "v1/serviceaccounts",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
            namespace=namespace,
            name=name,
            subresource="token",
        )
        return str(answer["status"]["token"])

    def api_for(self, kubeconfig: Path) -> Api:
        """Connect with another identity."""
        return Api.from_kubeconfig(kubeconfig)

    # Use

    def kubectl(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002 - the word of subprocess.run
        check: bool = True,
        kubeconfig: Path | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run the real kubectl, by default as the administrator.

        With `check`, raises ProgramError if kubectl fails.
        """
        return self._run("kubectl", args, input, check, kubeconfig, timeout)

    def helm(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the real helm as the administrator.

        With `check`, raises ProgramError if helm fails.
        """
        return self._run("helm", args, None, check, None, 120.0)

    def _run(
        self,
        program: str,
        args: Sequence[str],
        input: str | None,  # noqa: A002 - the word of subprocess.run
        check: bool,
        kubeconfig: Path | None,
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(self.assets / program), *args],
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={
                "KUBECONFIG": str(kubeconfig or self.admin_kubeconfig),
                "HOME": str(self.directory),  # its discovery cache
                "PATH": os.environ.get("PATH", ""),
            },
        )
        if check and done.returncode:
            raise ProgramError(f"{program} {' '.join(args)}: {done.stderr.strip()}")
        return done

    def create_namespace(self, name: str, labels: dict[str, str] | None = None) -> Object:
        """Make a namespace, and wait for its ServiceAccount "default", which pods need."""
        created = self.api.create(
            "v1/namespaces",
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "labels": labels or {}},
            },
        )
        # The controller manager creates the ServiceAccount a moment later.
        self.api.wait_for(
            "v1/serviceaccounts",
            "default",
            lambda found: found is not None,
            namespace=name,
            what="the default ServiceAccount",
        )
        return created

    # Its programs

    def child(self, program: str) -> Child:
        """Find a running program: "etcd", "kube-apiserver" and so on."""
        return next(child for child in self._children if child.name == program)

    def start_again(self, program: str) -> None:
        """Start an ended program again with the same data and port; it is not ready yet."""
        place = self._children.index(self.child(program))
        self._children[place] = self._children[place].again()

    # Making of

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._progress(text)

    def _make_identities(self) -> None:
        self._ca = trustme.CA()
        self._ca.cert_pem.write_to_path(self.ca_file)
        # ServiceAccount tokens are signed with an RSA key; trustme's default is an elliptic curve.
        signer = self._ca.issue_cert("service-account.test", key_type=trustme.KeyType.RSA)
        signer.private_key_pem.write_to_path(self.directory / "service-account.key")

    def _kubeconfig(self, name: str, user: dict[str, str]) -> Path:
        path = self.directory / f"{name}.kubeconfig"
        cluster = {"server": self.server, "certificate-authority": str(self.ca_file)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        }
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config))
        return path

    def _start(self, ports: Ports, attempt: int) -> None:
        self.server = self._url("https", ports.apiserver)
        self.etcd = self._url("http", ports.etcd)
        self.admin_kubeconfig = self.user_kubeconfig("admin", ADMIN)
        self._ports, self._data = ports, self.directory / f"etcd-{attempt}"
        self._start_servers(ports)
        self.api = Api.from_kubeconfig(self.admin_kubeconfig)
        self._say("starting kube-scheduler and kube-controller-manager")
        scheduler = self._child("kube-scheduler", self._scheduler_flags(ports))
        manager = self._child("kube-controller-manager", self._controller_manager_flags(ports))
        self._wait(scheduler, self._url("https", ports.scheduler) + "/readyz")
        self._wait(manager, self._url("https", ports.controller_manager) + "/healthz")
        self.api.wait_for(
            "v1/serviceaccounts",
            "default",
            lambda found: found is not None,
            namespace="default",
            timeout=READY_TIMEOUT,
            what="the default ServiceAccount",
        )

    def _start_servers(self, ports: Ports) -> None:
        self._say("starting etcd")
        etcd = self._child("etcd", _etcd_flags(ports, self._data, self.address))
        # Programs are stopped in reverse order, so etcd must be first in the list.
        self._children.insert(0, self._children.pop())
        self._wait(etcd, self._url("http", ports.etcd) + "/readyz")
        self._say("starting kube-apiserver")
        apiserver = self._child("kube-apiserver", self._apiserver_flags(ports))
        self._wait(apiserver, f"{self.server}/readyz")

    def _child(self, program: str, flags: list[str]) -> Child:
        child = Child(
            program,
            [str(self.assets / program), *flags],
            self.logs / f"{program}.log",
            {"PATH": os.environ.get("PATH", ""), "HOME": str(self.directory)},
        )
        self._children.append(child)
        return child

    def admin_tls(self) -> ssl.SSLContext:
        """A TLS context with the administrator's certificate, for other clients."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        (user,) = yaml.safe_load(self.admin_kubeconfig.read_text())["users"]
        context.load_cert_chain(user["user"]["client-certificate"], user["user"]["client-key"])
        return context

    def _wait(self, child: Child, url: str) -> None:
        context = ssl.create_default_context(cafile=str(self.ca_file))

        def ready() -> bool:
            try:
                with urllib.request.urlopen(url, timeout=2, context=context) as answer:
                    return int(answer.status) == 200
            except (urllib.error.URLError, OSError):
                return False

        try:
            child.wait_ready(ready, READY_TIMEOUT)
        except ProgramError as error:
            if "address already in use" in child.output():
                raise PortTakenError(str(error)) from error
            raise

    def _stop_children(self) -> None:
        # Stop etcd last: without etcd the other programs would fill their logs with errors.
        for child in reversed(self._children):
            child.stop(timeout=10 if child.name == "etcd" else 3)
        self._children.clear()

    def _apiserver_flags(self, ports: Ports) -> list[str]:
        cert, key = self.serving_certificate(
            "kube-apiserver", self.address, "localhost", "kubernetes.default.svc"
        )
        signing = self.directory / "service-account.key"
        return [
            f"--etcd-servers={self._url('http', ports.etcd)}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={ports.apiserver}",
            # An endpoint can't be a loopback address, so the Service "kubernetes" has none.
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={cert}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.ca_file}",
            "--authorization-mode=Node,RBAC",
            # As in kubeadm. The default plugins include ResourceQuota and both kinds of webhook.
            "--enable-admission-plugins=NodeRestriction",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={signing}",
            f"--service-account-signing-key-file={signing}",
            f"--service-cluster-ip-range={SERVICES[':' in self.address]}",
            "--allow-privileged=true",
            "--profiling=false",
            *self._limits(),
            *self._more_flags,
        ]

    def _limits(self) -> list[str]:
        if not self._limited:
            return []
        limited = {
            "resource": "pods",
            "matchScopes": [
                {"scopeName": "PriorityClass", "operator": "In", "values": list(self._limited)}
            ],
        }
        quota = {
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "ResourceQuotaConfiguration",
            "limitedResources": [limited],
        }
        config = {
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "AdmissionConfiguration",
            "plugins": [{"name": "ResourceQuota", "configuration": quota}],
        }
        path = self.directory / "admission.json"
        path.write_text(json.dumps(config))
        return [f"--admission-control-config-file={path}"]

    def _scheduler_flags(self, ports: Ports) -> list[str]:
        kubeconfig = self.user_kubeconfig("system:kube-scheduler")
        config = self.directory / "scheduler.yaml"
        config.write_text(
            json.dumps(
                {
                    "apiVersion": "kubescheduler.config.k8s.io/v1",
                    "kind": "KubeSchedulerConfiguration",
                    "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 500, "burst": 1000},
                    "leaderElection": {"leaderElect": False},
                }
            )
        )
        return [f"--config={config}", *self._secured(kubeconfig, ports.scheduler, "scheduler")]

    def _controller_manager_flags(self, ports: Ports) -> list[str]:
        kubeconfig = self.user_kubeconfig("system:kube-controller-manager")
        return [
            f"--kubeconfig={kubeconfig}",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={self.directory / 'service-account.key'}",
            f"--root-ca-file={self.ca_file}",
            f"--node-monitor-grace-period={NODE_GRACE}",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            *self._secured(kubeconfig, ports.controller_manager, "controller-manager"),
        ]

    def _secured(self, kubeconfig: Path, port: int, name: str) -> list[str]:
        cert, key = self.serving_certificate(name)
        return [
            f"--bind-address={self.address}",
            f"--secure-port={port}",
            f"--tls-cert-file={cert}",
            f"--tls-private-key-file={key}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
        ]

    def _url(self, scheme: str, port: int) -> str:
        return f"{scheme}://{in_url(self.address)}:{port}"


def _etcd_flags(ports: Ports, data: Path, address: str) -> list[str]:
    client, peer = (f"http://{in_url(address)}:{port}" for port in (ports.etcd, ports.etcd_peer))
    return [
        f"--data-dir={data}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",  # nobody needs the data after the test
        "--log-level=warn",
    ]


def in_url(address: str) -> str:
    """The address in the form for a URL: an IPv6 address gets brackets."""
    return f"[{address}]" if ":" in address else address


__all__ = ["Api", "ApiError", "ControlPlane", "PortTakenError", "ProgramError"]
