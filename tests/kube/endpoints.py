"""The addresses and ports of a control plane's programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from tests.kube.process import free_ports


@dataclass(frozen=True)
class Endpoint:
    """The address of one server."""

    scheme: str
    address: str
    port: int

    @property
    def url(self) -> str:
        """Scheme, address and port; an IPv6 address gets brackets."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.scheme}://{address}:{self.port}"


@dataclass(frozen=True)
class Endpoints:
    """The servers of all programs of one control plane."""

    etcd: Endpoint
    etcd_peer: Endpoint
    apiserver: Endpoint
    scheduler: Endpoint
    controller_manager: Endpoint

    @classmethod
    def free(cls, address: str) -> Self:
        """Choose free ports of a loopback address."""
        schemes = ("http", "http", "https", "https", "https")
        ports = free_ports(len(schemes), address)
        return cls(
            *(Endpoint(scheme, address, port) for scheme, port in zip(schemes, ports, strict=True))
        )
