"""A TLS handshake in memory."""

from __future__ import annotations

import ssl
from contextlib import suppress


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> ssl.SSLObject:
    """Shake hands as a client that expects `host`; return the client's end.

    Raises SSLError if an end refuses the other.
    """
    here, there, back, forth = (ssl.MemoryBIO() for _ in range(4))
    one = client.wrap_bio(here, there, server_hostname=host)
    other = server.wrap_bio(back, forth, server_side=True)
    for _ in range(4):
        for end in (one, other):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
            back.write(there.read())
            here.write(forth.read())
    return one
