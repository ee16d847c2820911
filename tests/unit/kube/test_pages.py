"""The pages of a list, read one after another."""

from __future__ import annotations

from typing import Any

from hugetlb_quota.kube.pages import pages

Json = dict[str, Any]


async def test_reads_pages_until_there_is_no_continuation_token() -> None:
    stored: dict[str | None, Json] = {
        None: {"metadata": {"continue": "2nd"}, "items": [1]},
        "2nd": {"metadata": {"continue": "3rd"}},
        "3rd": {"metadata": {"continue": ""}, "items": [2]},
    }
    requests: list[str | None] = []

    async def read(continuation: str | None) -> Json:
        requests.append(continuation)
        return stored[continuation]

    assert [page async for page in pages(read)] == list(stored.values())
    assert requests == [None, "2nd", "3rd"]
