"""Listening sockets, by default for both IPv4 and IPv6."""

from __future__ import annotations

import errno
import socket
from typing import Final

#: The address that means every address of the host, of both families.
EVERYWHERE: Final = "*"
#: The clients that wait to be accepted. The kernel limits the number to net.core.somaxconn; a
#: client beyond it tries again after a second.
_BACKLOG: Final = 1024
#: The errors of a kernel without IPv6 (ipv6.disable=1) or with IPv6 off on every interface.
_NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def listen(address: str, port: int) -> list[socket.socket]:
    """Listen on ``port`` of ``address``; port 0 selects a free port, the same for both families.

    :param address: an IPv4 or IPv6 address without brackets, a host name (all its addresses),
        or :data:`EVERYWHERE`: one socket for both families, or for IPv4 on a host without IPv6.
    :raises OSError: if the port is in use, or the host does not have the address.
    """
    if address == EVERYWHERE:
        return [_everywhere(port)]
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listening: list[socket.socket] = []
    try:
        for family, _, _, _, where in dict.fromkeys(found):
            chosen = listening[0].getsockname()[1] if listening else port
            listening.append(_bound(family, (where[0], chosen, *where[2:])))
    except BaseException:
        for each in listening:
            each.close()
        raise
    return listening


def _everywhere(port: int) -> socket.socket:
    try:
        return _bound(socket.AF_INET6, ("::", port), both=True)
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
        return _bound(socket.AF_INET, ("0.0.0.0", port))  # noqa: S104 - the caller wants all addresses


def _bound(family: int, where: tuple[object, ...], *, both: bool = False) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A restarted program can bind while connections of its predecessor are in TIME_WAIT.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        listening.bind(where)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening
