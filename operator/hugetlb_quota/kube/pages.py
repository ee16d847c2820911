"""Read a collection page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

#: Objects per page of a list, as in client-go's pager.
PAGE: Final = 500


async def pages(
    read: Callable[[str | None], Awaitable[dict[str, Any]]],
) -> AsyncIterator[dict[str, Any]]:
    """All pages of a collection, in order.

    :param read: reads the page for a continuation token; None stands for the first page. Errors
        of ``read`` are raised.
    """
    continuation: str | None = None
    while True:
        page = await read(continuation)
        yield page
        continuation = page["metadata"].get("continue")
        if not continuation:
            return
