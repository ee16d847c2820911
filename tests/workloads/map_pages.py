"""Map memory in huge pages, fall back to small pages if mmap fails, and print the result.

The output is one line of JSON. ``requested`` is the size to map, ``huge`` and ``fallback`` are the
sizes mapped in huge and in small pages, and ``resident`` is the size of huge pages in memory, from
/proc/self/smaps; all are in bytes. ``errno`` is the error of the failed mmap, or null.

By default the program touches every step before it maps the next one. With ``--map-first`` it maps
everything in one piece and touches it later: a limit that works only at the touch kills the
program with SIGBUS.
"""

# pathlib would double the start time:
# ruff: noqa: PTH123

from __future__ import annotations

import argparse
import errno
import json
import mmap
import os
import signal

MAP_HUGETLB = 0x40000
MAP_HUGE_SHIFT = 26
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def parse_bytes(text: str) -> int:
    """``64Mi`` -> 67108864."""
    unit = text[-2:]
    return int(text[:-2]) * _UNITS[unit] if unit in _UNITS else int(text)


def map_huge(length: int, page: int) -> mmap.mmap:
    """Map private anonymous huge pages. Raises OSError (ENOMEM) if no pages can be reserved."""
    size = (page.bit_length() - 1) << MAP_HUGE_SHIFT
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB | size
    return mmap.mmap(-1, length, flags=flags)


def map_file(descriptor: int, offset: int, length: int) -> mmap.mmap:
    """Extend a file on hugetlbfs, and map the new part shared."""
    os.ftruncate(descriptor, offset + length)
    return mmap.mmap(descriptor, length, flags=mmap.MAP_SHARED, offset=offset)


def touch(memory: mmap.mmap, page: int) -> None:
    """Write to every page."""
    for offset in range(0, len(memory), page):
        memory[offset] = 1


def resident_huge() -> int:
    """The bytes of huge pages in the page tables of this process."""
    with open("/proc/self/smaps") as smaps:
        lines = [line.split() for line in smaps if "_Hugetlb:" in line]
    return sum(int(words[1]) * 1024 for words in lines)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser("map_pages", description="maps memory in huge pages")
    parser.add_argument("bytes", type=parse_bytes, help="e.g. 64Mi")
    parser.add_argument("--page", type=parse_bytes, default=2 << 20, help="page size, e.g. 2Mi")
    parser.add_argument("--step", type=parse_bytes, help="bytes of a step; default: a page")
    parser.add_argument("--file", help="map this file on hugetlbfs, not anonymous memory")
    parser.add_argument("--map-first", action="store_true", help="map all at once, touch later")
    parser.add_argument("--hold", action="store_true", help="keep all memory until SIGTERM")
    return parser.parse_args()


def main() -> None:
    """Map the pages, touch them, print the result, and wait."""
    options = arguments()
    if options.hold:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    step = options.bytes if options.map_first else options.step or options.page
    descriptor = os.open(options.file, os.O_RDWR | os.O_CREAT, 0o644) if options.file else -1
    held: list[mmap.mmap] = []
    huge = fallback = 0
    refused: str | None = None
    while huge + fallback < options.bytes:
        length = min(step, options.bytes - huge - fallback)
        try:
            if refused:
                raise OSError(errno.ENOMEM, "refused before")
            memory = (
                map_file(descriptor, huge, length)
                if options.file
                else map_huge(length, options.page)
            )
            huge += length
        except OSError as error:
            refused = refused or errno.errorcode.get(error.errno or 0, str(error))
            memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            fallback += length
        held.append(memory)
        if options.map_first:
            print(f"mapped {huge} bytes in huge pages, now touching them", flush=True)
        touch(memory, 4096 if refused else options.page)
    if descriptor >= 0 and refused:
        # The file was extended for a mapping that failed.
        os.ftruncate(descriptor, huge)
    print(
        json.dumps(
            {
                "requested": options.bytes,
                "huge": huge,
                "fallback": fallback,
                "errno": refused,
                "resident": resident_huge(),
            }
        ),
        flush=True,
    )
    while options.hold:
        signal.pause()


if __name__ == "__main__":
    main()
