"""Every way to get huge pages, as statements of an actor.

The kernel's own tests of the hugetlb cgroup try the same ways (charge_reserved_hugetlb.sh): a file,
anonymous memory, a System V segment, a memfd; private and shared; populated, written, or neither;
with and without a reservation.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

from hugetlb_quota.page_size import PageSize
from tests.tracking import Actor

FLAGS = {"shared": "SHARED", "private": "PRIVATE"}
RESERVE = {"reserve": "", "noreserve": " | NORESERVE"}
POPULATE = " | 0x8000"


@dataclass(frozen=True)
class Size:
    """A page size, the number of pages that each way maps, and the number of ways at a time."""

    page: PageSize
    pages: int
    ways: int


SIZES = {
    "2Mi": Size(PageSize(2 << 20), pages=3, ways=99),
    # One way at a time, because few machines have more than two such pages.
    "1Gi": Size(PageSize(1 << 30), pages=2, ways=1),
}


class Way(NamedTuple):
    kind: str
    sharing: str
    use: str
    reserve: str

    @property
    def name(self) -> str:
        return "-".join(self)

    def statements(self, path: Path, size: Size) -> str:
        pages, page = size.pages, size.page.bytes
        begin = f"PAGE = {page}; SIZE = {page.bit_length() - 1} << 26"
        flags = FLAGS[self.sharing] + RESERVE[self.reserve]
        flags += POPULATE if self.use == "populate" else ""
        touch = f"; touch(a, 0, {pages - 1})" if self.use == "write" else ""
        match self.kind:
            case "file":
                begin += f"; fd = create({str(path)!r}); os.ftruncate(fd, {pages} * PAGE)"
                return f"{begin}; a = map_pages({pages}, {flags}, fd){touch}"
            case "anonymous":
                return f"{begin}; a = map_pages({pages}, {flags} | ANONYMOUS | HUGETLB){touch}"
            case "memfd":
                begin += f"; fd = memfd(); os.ftruncate(fd, {pages} * PAGE)"
                return f"{begin}; a = map_pages({pages}, {flags}, fd){touch}"
            case _:
                more = "0o10000" if self.reserve == "noreserve" else "0"
                begin += f"; result = n = shmget(0, {pages}, {more}); a = libc.shmat(n, None, 0)"
                return f"{begin}{touch}"


WAYS = [
    Way(*each)
    for each in product(
        ("file", "anonymous", "memfd"), FLAGS, ("populate", "write", "neither"), RESERVE
    )
] + [Way("segment", "shared", *each) for each in product(("write", "neither"), RESERVE)]


def remove_segments(segments: list[int]) -> None:
    """Remove the System V segments with these IDs, and empty the list."""
    with Actor() as host:
        while segments:
            host.do(f"libc.shmctl({segments.pop()}, 0, None)")
