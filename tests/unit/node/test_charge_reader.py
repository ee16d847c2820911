"""ChargeReader with children that fail: it says why, and pauses before each restart."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from hugetlb_quota.node.charge_reader import ChargeListUnreadable, ChargeReader

#: The functions that a child may use to write an answer and to wait for a request.
STAGE = f"""#!{sys.executable} -S
import os, struct, sys
def head(status, length=0, magic=0x4C435148, protocol=1):
    os.write(1, struct.pack("=IHHQIIQ", magic, protocol, status, length, 3, 1, 5))
def empty(status):
    head(status, 72); os.write(1, bytes(72))
def request():
    return os.read(0, 1) or sys.exit()
"""
READY = "head(1)\n"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def child(tmp_path: Path, clock: Clock) -> AsyncIterator[Callable[[str], ChargeReader]]:
    """Return a function from the code of a child to a ChargeReader that runs this child."""
    made: list[ChargeReader] = []

    def make(does: str) -> ChargeReader:
        program = tmp_path / "reader"
        program.write_text(STAGE + does)
        program.chmod(0o755)
        made.append(ChargeReader(program, timeout=5, clock=clock))
        return made[-1]

    yield make
    for each in made:
        await each.close()


async def test_reads_an_empty_list(child: Callable[[str], ChargeReader]) -> None:
    reader = child(READY + "while request(): empty(2)")
    first = await reader.read()
    assert (first.files, first.at_rest) == ((), True)
    assert (first.mappings_left_out, first.reads, first.seconds) == (True, 3, 5e-9)
    pid = reader.pid
    await reader.read()
    assert reader.pid == pid


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("head(1, magic=7)", "07000000"),
        ("head(1, protocol=2)", "another protocol"),
        ("head(2)", "first status is 2"),
        (READY + "request(); head(9)", "status is 9"),
        (READY + "request(); head(2, length=1 << 40)", "announces 1099511627776 bytes"),
        (READY + "request(); head(4, length=5000)", "announces 5000 bytes"),
        (READY + "request(); head(2, length=8); os.write(1, b'x' * 8)", "72 bytes"),
        (READY + "request(); head(2, length=8); os.write(1, b'x')", "ended before its answer"),
        (READY + "request(); os.write(1, b'HQ')", "ended before its answer"),
        ("head(4, length=9); os.write(1, b'No BTF. \\n')", "No BTF"),
        ("", "ended before its answer"),
    ],
)
async def test_ends_a_child_that_fails_and_says_why(
    child: Callable[[str], ChargeReader], does: str, why: str
) -> None:
    reader = child(does)
    with pytest.raises(ChargeListUnreadable, match=why):
        await reader.read()
    assert reader.pid is None


async def test_keeps_the_child_after_a_failed_read(child: Callable[[str], ChargeReader]) -> None:
    reader = child(
        READY + "request(); head(4, length=4); os.write(1, b'torn'); request(); empty(3)"
    )
    with pytest.raises(ChargeListUnreadable, match="torn"):
        await reader.read()
    assert not (await reader.read()).at_rest


async def test_says_how_to_build_a_missing_program(tmp_path: Path, clock: Clock) -> None:
    reader = ChargeReader(tmp_path / "none", clock=clock)
    with pytest.raises(ChargeListUnreadable, match=r"none can't be started.*make reader"):
        await reader.read()


async def test_the_pause_doubles_up_to_a_minute_until_a_success(
    child: Callable[[str], ChargeReader], tmp_path: Path, clock: Clock
) -> None:
    marker = tmp_path / "well"
    reader = child(
        f"if not os.path.exists({str(marker)!r}): sys.exit()\n{READY}while request(): empty(2)"
    )
    for pause in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60):
        with pytest.raises(ChargeListUnreadable, match="ended"):
            await reader.read()
        clock.now += pause - 0.1
        with pytest.raises(ChargeListUnreadable, match=r"starts the reader again in 0\.1 s"):
            await reader.read()
        clock.now += 0.1001
    marker.touch()
    await reader.read()
    marker.unlink()
    await reader.close()
    with pytest.raises(ChargeListUnreadable, match="ended"):
        await reader.read()
    clock.now += 0.251
    with pytest.raises(ChargeListUnreadable, match="ended"):
        await reader.read()
