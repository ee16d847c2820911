"""The flags of the control plane's programs, and the configuration files that the flags name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.kube.certificates import Certificates
from tests.kube.endpoints import Endpoint, Endpoints
from tests.kube.kubeconfigs import Kubeconfigs

ADMIN = "system:masters"
"""The group of the administrator, and of kube-apiserver as a client of kubelets."""

SERVICES = ("10.96.0.0/16", "fd00:10:96::/112")
"""The ranges of Service addresses, for IPv4 and for IPv6."""

NODE_GRACE = "300s"
"""How long a test node may miss heartbeats, so that a busy machine evicts no pods."""


@dataclass(frozen=True)
class ApiServerOptions:
    """The settings of kube-apiserver that differ between tests."""

    limited_priority_classes: tuple[str, ...] = ()
    """Pods of these classes need a ResourceQuota for the class in their namespace."""
    node_side_address: str | None = None
    """The address where nodes with kubelet reach kube-apiserver; None without such nodes."""
    more: tuple[str, ...] = ()
    """More flags."""


@dataclass(frozen=True)
class Flags:
    """The flags of each program; RBAC is on. `directory`: the folder for configuration files."""

    directory: Path
    endpoints: Endpoints
    certificates: Certificates
    kubeconfigs: Kubeconfigs

    def etcd(self, data: Path) -> list[str]:
        client, peer = self.endpoints.etcd.url, self.endpoints.etcd_peer.url
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

    def apiserver(self, options: ApiServerOptions) -> list[str]:
        endpoint, signing = self.endpoints.apiserver, self.certificates.service_account_key
        return [
            f"--etcd-servers={self.endpoints.etcd.url}",
            f"--secure-port={endpoint.port}",
            f"--client-ca-file={self.certificates.ca_file}",
            "--authorization-mode=Node,RBAC",
            # As in kubeadm. The default plugins include ResourceQuota and both kinds of webhook.
            "--enable-admission-plugins=NodeRestriction",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={signing}",
            f"--service-account-signing-key-file={signing}",
            f"--service-cluster-ip-range={SERVICES[':' in endpoint.address]}",
            "--allow-privileged=true",
            "--profiling=false",
            *self._listening(options.node_side_address),
            *self._limits(options.limited_priority_classes),
            *options.more,
        ]

    def _listening(self, node_side_address: str | None) -> list[str]:
        address = self.endpoints.apiserver.address
        hosts = [address, "localhost", "kubernetes.default.svc"]
        if node_side_address is None:
            # An endpoint can't be a loopback address, so the Service "kubernetes" has none.
            flags = [
                f"--bind-address={address}",
                f"--advertise-address={address}",
                "--endpoint-reconciler-type=none",
            ]
        else:
            hosts += [node_side_address, "10.96.0.1", "kubernetes"]
            client = self.certificates.user("kube-apiserver-kubelet-client", ADMIN)
            flags = [
                "--bind-address=0.0.0.0",
                # The endpoint of the Service "kubernetes".
                f"--advertise-address={node_side_address}",
                f"--kubelet-client-certificate={client.certificate}",
                f"--kubelet-client-key={client.key}",
                f"--kubelet-certificate-authority={self.certificates.ca_file}",
                "--kubelet-preferred-address-types=InternalIP",
            ]
        pair = self.certificates.server("kube-apiserver", *hosts)
        return [*flags, f"--tls-cert-file={pair.certificate}", f"--tls-private-key-file={pair.key}"]

    def _limits(self, priority_classes: tuple[str, ...]) -> list[str]:
        if not priority_classes:
            return []
        scope = {"scopeName": "PriorityClass", "operator": "In", "values": list(priority_classes)}
        quota = {
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "ResourceQuotaConfiguration",
            "limitedResources": [{"resource": "pods", "matchScopes": [scope]}],
        }
        config = {
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "AdmissionConfiguration",
            "plugins": [{"name": "ResourceQuota", "configuration": quota}],
        }
        path = self.directory / "admission.json"
        path.write_text(json.dumps(config))
        return [f"--admission-control-config-file={path}"]

    def scheduler(self) -> list[str]:
        kubeconfig = self.kubeconfigs.user("system:kube-scheduler")
        content = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 500, "burst": 1000},
            "leaderElection": {"leaderElect": False},
        }
        config = self.directory / "scheduler.yaml"
        config.write_text(json.dumps(content))
        endpoint = self.endpoints.scheduler
        return [f"--config={config}", *self._secured(kubeconfig, endpoint, "scheduler")]

    def controller_manager(self) -> list[str]:
        kubeconfig = self.kubeconfigs.user("system:kube-controller-manager")
        endpoint = self.endpoints.controller_manager
        return [
            f"--kubeconfig={kubeconfig}",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={self.certificates.service_account_key}",
            f"--root-ca-file={self.certificates.ca_file}",
            f"--node-monitor-grace-period={NODE_GRACE}",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            *self._secured(kubeconfig, endpoint, "controller-manager"),
        ]

    def _secured(self, kubeconfig: Path, endpoint: Endpoint, name: str) -> list[str]:
        pair = self.certificates.server(name, endpoint.address, "localhost")
        return [
            f"--bind-address={endpoint.address}",
            f"--secure-port={endpoint.port}",
            f"--tls-cert-file={pair.certificate}",
            f"--tls-private-key-file={pair.key}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
        ]
