"""What is written down is there again, or said to be lost; never half of it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.volume import Volume
from hugetlb_quota.agent.memory import Account, Memory, NoMemory, NotRemembered, State
from hugetlb_quota.page_size import PageSize

SIZE = PageSize(2 << 20)
BOOT = "6687db17"
MIB = 1 << 20


def mib(amount: int) -> Charge:
    return Charge({SIZE: amount * MIB})


GONE = Account(
    *(
        "u",
        "ns",
        "p",
        ("ns/a", "ns/b"),
        mib(8),
        mib(6),
        State.GONE,
        datetime(2026, 1, 1, tzinfo=UTC),
    ),
    volumes=(Volume("data", "/mnt/huge"), Volume("claim")),
)
EMPTY = replace(GONE, state=State.EMPTY, charge=mib(2))
LIVE = replace(GONE, uid="v", state=State.LIVE)


def test_what_was_saved_is_there_again(tmp_path: Path) -> None:
    memory = Memory.open(tmp_path / "made", BOOT)
    assert memory.remembered is None
    memory.save([GONE, EMPTY, LIVE], [], mib(4), mib(2))
    memory.save([replace(LIVE, charge=mib(1))], [EMPTY], mib(3), mib(2))
    memory.close()
    memory = Memory.open(tmp_path / "made", BOOT)
    assert memory.remembered is not None
    assert memory.remembered.accounts == (GONE, replace(LIVE, charge=mib(1)))
    assert (memory.remembered.stray, memory.remembered.guessed) == (mib(3), mib(2))
    assert memory.set_aside is None
    memory.close()


def test_after_a_boot_there_is_nothing_to_remember(tmp_path: Path) -> None:
    memory = Memory.open(tmp_path, BOOT)
    memory.save([GONE], [], mib(0), mib(0))
    memory.close()
    for boot in ("another", BOOT):
        memory = Memory.open(tmp_path, boot)
        assert memory.remembered is None
        memory.close()


def test_what_was_opened_and_never_saved_remembers_nothing(tmp_path: Path) -> None:
    """It was killed before it had seen anything: the last report is what is known."""
    Memory.open(tmp_path, BOOT).close()
    memory = Memory.open(tmp_path, BOOT)
    assert memory.remembered is None
    memory.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no database" * 1000),
        lambda path: path.write_bytes(path.read_bytes()[:100] + b"\xff" * 20000),
        lambda path: _sql(path, "PRAGMA user_version = 99"),
        lambda path: _sql(path, "DROP TABLE accounts"),
        lambda path: _sql(path, "UPDATE accounts SET charge = '{'"),
        lambda path: _sql(path, """UPDATE accounts SET charge = '{"hugepages-3Mi": "1"}'"""),
        lambda path: _sql(path, "UPDATE accounts SET since = 'once'"),
    ],
)
def test_a_damaged_one_is_set_aside(tmp_path: Path, damage: object) -> None:
    memory = Memory.open(tmp_path, BOOT)
    memory.save([GONE], [], mib(0), mib(0))
    memory.close()
    path = tmp_path / "agent.sqlite"
    assert callable(damage)
    damage(path)
    before = path.read_bytes()
    memory = Memory.open(tmp_path, BOOT)
    assert memory.remembered is None
    assert memory.set_aside is not None
    assert memory.set_aside.read_bytes() == before
    memory.save([GONE], [], mib(0), mib(0))
    memory.close()
    memory = Memory.open(tmp_path, BOOT)
    assert memory.remembered is not None
    assert memory.set_aside is None
    memory.close()


def _sql(path: Path, statement: str) -> None:
    database = sqlite3.connect(path)
    with database:
        database.execute(statement)
    database.close()


def test_two_do_not_have_it_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def impatient(path: Path, **options: object) -> sqlite3.Connection:
        return connect(path, timeout=0.1, isolation_level=None)

    monkeypatch.setattr(sqlite3, "connect", impatient)
    memory = Memory.open(tmp_path, BOOT)
    with pytest.raises(NoMemory, match="run one agent on it at a time"):
        Memory.open(tmp_path, BOOT)
    memory.close()
    Memory.open(tmp_path, BOOT).close()


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NoMemory, match="give --state-dir a directory"):
        Memory.open(tmp_path / "file", BOOT)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    memory = Memory.open(tmp_path, BOOT)
    memory.save([GONE], [], mib(0), mib(0))
    # As a disk that is full: no page more than there are.
    (pages,) = memory._database.execute("PRAGMA page_count").fetchone()
    memory._database.execute(f"PRAGMA max_page_count = {pages}")
    many = [replace(LIVE, uid=f"u{n}") for n in range(1000)]
    with pytest.raises(NotRemembered, match="full"):
        memory.save(many, [GONE], mib(1), mib(1))
    memory.close()
    memory = Memory.open(tmp_path, BOOT)
    assert memory.remembered is not None
    assert memory.remembered.accounts == (GONE,)
    assert memory.remembered.stray == mib(0)
    memory.close()


def test_kill_9_while_it_writes_leaves_one_state_or_the_next(tmp_path: Path) -> None:
    program = f"""
from tests.unit.agent.test_memory import *
memory = Memory.open(Path({str(tmp_path)!r}), BOOT)
print("begun", flush=True)
for n in range(1, 10**9):
    accounts = [replace(GONE, uid=f"u{{k}}", charge=mib(n)) for k in range(50)]
    memory.save(accounts, [], mib(n), mib(0))
"""
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        memory = Memory.open(tmp_path, BOOT)
        assert memory.remembered is not None
        assert memory.set_aside is None
        assert len(memory.remembered.accounts) == 50
        assert {each.charge for each in memory.remembered.accounts} == {memory.remembered.stray}
        memory.close()
