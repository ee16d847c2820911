"""The sockets on which a program answers: of IPv4 and IPv6 alike, unless told otherwise."""

from __future__ import annotations

import errno
import socket
from typing import Final

#: As an address to listen on: every address of the host, of both families.
EVERYWHERE: Final = "*"
#: Clients that wait to be accepted; the kernel makes it net.core.somaxconn at most. One more
#: would try again after a second.
_BACKLOG: Final = 1024
#: A kernel without IPv6 (ipv6.disable=1), or with IPv6 switched off on every interface.
_NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def listen(address: str, port: int) -> list[socket.socket]:
    """Listen on ``port`` of ``address``; port 0 is a free port, the same for both families.

    :param address: an IPv4 or IPv6 address without brackets, a host name (every address
        of that name), or :data:`EVERYWHERE`, which is one socket for both families, and
        IPv4 alone on a host without IPv6.
    :raises OSError: when the port is taken, or the address is not one of this host.
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
        return _bound(socket.AF_INET, ("0.0.0.0", port))  # noqa: S104 - all is what is asked for


def _bound(family: int, where: tuple[object, ...], *, both: bool = False) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A program that is started anew must not wait for its predecessor's connections.
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
