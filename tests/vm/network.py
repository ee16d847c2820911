r"""A network for the control plane on the host and the nodes, in a new network namespace.

    host 10.0.2.1 --- bridge --- node-1 10.0.2.11, pods 10.88.1.0/24
                            \--- node-2 10.0.2.12, pods 10.88.2.0/24

The API server reaches pods and Services (webhooks) through the nodes, as in any cluster. The
namespace has no route to the outside, and disappears with its last process.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from tests.vm.steps import run

HOST = "10.0.2.1"
SERVICES = "10.96.0.0/16"
BRIDGE = "nodes"

_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Address:
    """The addresses of a node; `number` counts from 1."""

    number: int

    @property
    def ip(self) -> str:
        """The node's IP address."""
        return f"10.0.2.{10 + self.number}"

    @property
    def pods(self) -> str:
        """The CIDR of the node's pods."""
        return f"10.88.{self.number}.0/24"

    @property
    def mac(self) -> str:
        """The MAC address of the node's network card."""
        return f"52:54:00:00:02:{10 + self.number:02x}"

    @property
    def tap(self) -> str:
        """The tap device on the host for the node's network card."""
        return f"tap{self.number}"


def enter() -> None:
    """Move this thread, and all threads and processes that it starts, to a new network namespace.

    Call this before the process has other threads, and after everything that needs the outer
    network. Needs CAP_SYS_ADMIN; raises OSError.
    """
    if _libc.unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare the network namespace: {os.strerror(number)}")


def make(nodes: list[Address]) -> None:
    """Make the bridge, a tap for each node, and the routes to pods and Services.

    Nodes have no routes to pods of other nodes. The host forwards, only in this namespace.
    """
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")
    ip("link", "set", "lo", "up")
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("address", "add", f"{HOST}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    for node in nodes:
        ip("tuntap", "add", "dev", node.tap, "mode", "tap")
        ip("link", "set", node.tap, "master", BRIDGE, "up")
        ip("route", "add", node.pods, "via", node.ip)
    ip("route", "add", SERVICES, "via", nodes[0].ip)


def ip(*words: str | Path) -> None:
    """Run iproute2's ip."""
    run(["ip", *words])
