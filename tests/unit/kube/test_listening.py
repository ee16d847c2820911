"""Listening on both IPv4 and IPv6, on one of them, and on a host without IPv6."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

import pytest

from hugetlb_quota.kube.listening import EVERYWHERE, listen


def answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except OSError:
        return False


def port_of(listening: Iterable[socket.socket]) -> int:
    """The port of all sockets, which must be the same."""
    (port,) = {each.getsockname()[1] for each in listening}
    return int(port)


def close(listening: Iterable[socket.socket]) -> None:
    for each in listening:
        each.close()


@pytest.fixture
def ipv6() -> None:
    try:
        close(listen("::1", 0))
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")


@pytest.mark.usefixtures("ipv6")
@pytest.mark.parametrize(
    ("address", "reached"),
    [
        (EVERYWHERE, {"127.0.0.1", "::1"}),
        ("::", {"::1"}),
        ("0.0.0.0", {"127.0.0.1"}),
        ("::1", {"::1"}),
        ("127.0.0.1", {"127.0.0.1"}),
    ],
)
def test_an_address_is_reached_by_its_families(address: str, reached: set[str]) -> None:
    listening = listen(address, 0)
    port = port_of(listening)
    assert {host for host in ("127.0.0.1", "::1") if answers(host, port)} == reached
    close(listening)


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_a_host_without_ipv6_is_reached_by_ipv4(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithoutIPv6(socket.socket):
        def bind(self, address: object) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(number, "no IPv6")
            super().bind(address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "socket", WithoutIPv6)
    listening = listen(EVERYWHERE, 0)
    assert answers("127.0.0.1", port_of(listening))
    close(listening)


@pytest.mark.parametrize("taken_on", ["127.0.0.1", "::1"])
@pytest.mark.usefixtures("ipv6")
def test_a_port_in_use_for_one_family_is_refused(taken_on: str) -> None:
    taken = listen(taken_on, 0)
    with pytest.raises(OSError, match="in use"):
        listen(EVERYWHERE, port_of(taken))
    close(taken)


def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(OSError, match="assign"):
        listen("192.0.2.1", 0)
