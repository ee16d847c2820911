"""Every way to get huge pages, as statements of an actor.

As the kernel's own self-tests of the hugetlb cgroup walk through them (charge_reserved_hugetlb.sh):
a file, anonymous, System V, memfd; private and shared; populated, written, neither; with
a reservation and without.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

from hugetlb_quota.page_size import PageSize

FLAGS = {"shared": "SHARED", "private": "PRIVATE"}
RESERVE = {"reserve": "", "noreserve": " | NORESERVE"}
POPULATE = " | 0x8000"


@dataclass(frozen=True)
class Size:
    """A page size, how many pages a way maps, and how many ways are walked at once."""

    page: PageSize
    pages: int
    ways: int


SIZES = {
    "2Mi": Size(PageSize(2 << 20), pages=3, ways=99),
    # Two pages at a time: few machines have more to give.
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
