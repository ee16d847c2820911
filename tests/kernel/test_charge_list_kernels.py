"""The reader on other kernels: for every way to get huge pages the list equals the counters.

Each kernel boots in seconds in a virtual machine without acceleration. All use the same binary.
"""

from __future__ import annotations

import base64
import platform
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hugetlb_quota.node.charge_list import ChargeList
from hugetlb_quota.node.charge_rows import decode
from tests.kernel.boot import debian_kernel, machine
from tests.kernel.ways import SIZES, WAYS
from tests.tracking import PAGE, SMALL

HERE = Path(__file__).resolve().parent
SUITES = {"bookworm": "6.1.", "trixie": "6.12."}
HEAD = struct.Struct("=IHHQIIQ")
REST, ERROR = 2, 4
PAGES = SIZES["2Mi"].pages


@dataclass
class Step:
    """The counters in pages by way, with ``/`` for the sum, and the charge list."""

    counters: dict[str, int] = field(default_factory=dict)
    charges: ChargeList | None = None


@pytest.fixture(scope="module")
def programs(reader_program: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the initramfs."""
    if platform.machine() != "x86_64":
        pytest.skip("kernel matrix: this machine is not x86-64, but the kernels are")
    if shutil.which(machine.QEMU) is None:
        pytest.skip(f"kernel matrix: {machine.QEMU} is missing; install qemu-system-x86")
    if not machine.BUSYBOX.exists() or b"statically" not in _kind_of(machine.BUSYBOX):
        pytest.skip(f"kernel matrix: no static {machine.BUSYBOX}; install busybox-static")
    mapper = tmp_path_factory.mktemp("boot") / "mapper"
    subprocess.run(["cc", "-O1", "-static", "-o", mapper, HERE / "boot" / "mapper.c"], check=True)
    return {
        "init": (HERE / "boot" / "init").read_bytes(),
        "bin/busybox": machine.BUSYBOX.read_bytes(),
        "charge-reader": reader_program.read_bytes(),
        "mapper": mapper.read_bytes(),
        "ways": "\n".join(way.name for way in WAYS).encode(),
    }


def _kind_of(program: Path) -> bytes:
    # An ELF file without a dynamic loader is static.
    return b"" if b"ld-linux" in program.read_bytes()[:4096] else b"statically"


def debian(suite: str) -> Path:
    try:
        return debian_kernel.kernel(suite)
    except debian_kernel.NoKernel as error:
        pytest.skip(f"kernel matrix: {error}")


@pytest.fixture(scope="module", params=SUITES)
def walked(
    request: pytest.FixtureRequest,
    programs: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, int], dict[str, Step]]:
    """Boot a kernel; return the cgroup IDs by way, and the steps by name."""
    kernel = debian(request.param)
    most = PAGES * len(WAYS) + 8
    lines = machine.boot(kernel, programs, most, tmp_path_factory.mktemp("machine"))
    ids: dict[str, int] = {}
    steps: dict[str, Step] = {}
    for line in lines:
        match line.split():
            case ["kernel", release]:
                assert release.startswith(SUITES[request.param])
            case ["id", way, inode]:
                ids[way] = int(inode)
            case ["step", name]:
                step = steps[name] = Step()
            case ["counter", way, count]:
                step.counters[way] = int(count) // PAGE
            case ["answer", text]:
                step.charges = _decoded(base64.b64decode(text))
    return ids, steps


def _decoded(answers: bytes) -> ChargeList:
    """Return the list in the second answer. The first answer shows that the reader is ready."""
    both = list(_split(answers))
    assert [status for status, *_ in both] == [1, REST], both
    return decode(both[1][1], at_rest=True)


def _split(answers: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(answers):
        _, _, status, length, *_ = HEAD.unpack_from(answers, at)
        at += HEAD.size
        yield status, answers[at : at + length]
        at += length


def test_the_list_equals_the_counters_at_every_step(
    walked: tuple[dict[str, int], dict[str, Step]],
) -> None:
    ids, steps = walked
    assert list(steps) == ["run", "end", "removed", "cut", "unlinked", "nothing"]
    for name, step in steps.items():
        assert step.charges
        assert step.charges.at_rest
        listed = {way: step.charges.below(ids[way]).get(SMALL, 0) for way in step.counters}
        assert listed == step.counters, name
    run = steps["run"].counters
    assert set(run) == {"/", *(way.name for way in WAYS)}
    # Each way has pages, so no way failed.
    assert all(run[way.name] for way in WAYS if way.reserve == "reserve" or way.use != "neither")
    assert steps["nothing"].counters == {"/": 0}


def test_lists_a_removed_cgroup_with_its_name(
    walked: tuple[dict[str, int], dict[str, Step]],
) -> None:
    ids, steps = walked
    left = {way.name: steps["end"].counters[way.name] for way in WAYS}
    assert left["file-shared-neither-reserve"] == left["segment-shared-write-reserve"] == PAGES
    assert left["file-private-write-reserve"] == left["anonymous-shared-write-reserve"] == 0
    charges = steps["removed"].charges
    assert charges
    for name, pages in left.items():
        assert charges.below(ids[name]).get(SMALL, 0) == pages, name
        if pages:
            assert charges.cgroups[ids[name]].path == f"/k/{name}"
    files = {file.path for file in charges.files if not file.superblock.internal}
    assert "/file-shared-neither-reserve" in files
    assert {f.path for f in charges.files if f.superblock.internal} == {"SYSV00000000"}


@pytest.mark.parametrize("suite", SUITES)
def test_says_that_a_locked_down_kernel_forbids_reading(
    suite: str, programs: dict[str, bytes], tmp_path: Path
) -> None:
    kernel = debian(suite)
    lines = machine.boot(kernel, programs, 1, tmp_path, "once lockdown=confidentiality")
    [answers] = [line.split()[1] for line in lines if line.startswith("answer ")]
    [(status, sentence)] = _split(base64.b64decode(answers))
    assert status == ERROR
    assert b"locked down for confidentiality" in sentence
