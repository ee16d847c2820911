"""What the agent must not forget when it is killed: SQLite, in the node's state directory.

Everything is written before it is reported. ``kill -9`` between the two, or at any other
line, leaves the state of some moment before; the kernel's totals, read anew, bring that
up to date. So a transaction need not reach the disk at once (synchronous=NORMAL): only a
power loss could undo it, and after a boot there is nothing to remember.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.charge_list import FileKey, Row
from hugetlb_quota.accounting.volume import Volume
from hugetlb_quota.node.host import UnusableHost
from hugetlb_quota.page_size import PageSize

_FILE: Final = "agent.sqlite"
#: Another number is another layout: what is there is set aside.
_SCHEMA: Final = 3
#: What says nothing of the database itself: another has it, or the disk is full or read-only.
_UNUSABLE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)
_TABLES: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE accounts (
    uid TEXT NOT NULL, gone INTEGER NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    quotas TEXT NOT NULL, demand TEXT NOT NULL, charge TEXT NOT NULL, in_files TEXT NOT NULL,
    state TEXT NOT NULL, since TEXT NOT NULL, volumes TEXT NOT NULL, presumed INTEGER NOT NULL,
    PRIMARY KEY (uid, gone)
) WITHOUT ROWID;
CREATE TABLE files (
    device INTEGER NOT NULL, inode INTEGER NOT NULL, path BLOB NOT NULL, root INTEGER NOT NULL,
    length INTEGER NOT NULL, since TEXT NOT NULL, candidates TEXT NOT NULL,
    page_size INTEGER NOT NULL, ranges TEXT NOT NULL, PRIMARY KEY (device, inode)
) WITHOUT ROWID;
"""

logger = logging.getLogger(__name__)


class NoMemory(UnusableHost):
    """The state directory can't be used."""

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(
            f"{path} can't be used to remember who is charged ({error}); give --state-dir a"
            " directory of the host that is writable, and run one agent on it at a time."
        )
        self.path = path


class NotRemembered(Exception):
    """A write failed, so what it holds would be lost with this process."""


class State(StrEnum):
    """How far the life of a pod's cgroup has come.

    ``FORMER``: other quotas govern the pod by now, and its cgroup is there still.
    """

    LIVE = "live"
    EMPTY = "empty"
    FORMER = "former"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Account:
    """What a pod is charged in fact.

    ``uid``: that in the name of its cgroup, or what stands for a former life of that
    (accounting/lives.py). ``quotas`` govern it directly, sorted; or did in that life.
    ``demand``: what it asked for, and so the most it may reserve, as far as is known.
    ``charge``: what it has reserved; if the cgroup is ``GONE``, what is left of that. When
    it is ``EMPTY``, with no process in it, only what is left can be. That of a ``FORMER``
    life is a part of what the pod's cgroup has. ``in_files``: how much of what is left was
    in files that are known, when that was settled last. ``volumes``: of the pod, as
    :class:`Known` has them. ``presumed``: no agent saw it, and it is taken for the one that
    left what nobody else did.
    """

    uid: str
    namespace: str
    name: str
    quotas: tuple[str, ...]
    demand: Charge
    charge: Charge
    state: State
    since: datetime
    in_files: Charge = NOTHING
    volumes: tuple[Volume, ...] = ()
    presumed: bool = False

    @property
    def pod(self) -> str:
        """``namespace/name``; empty when no name is known."""
        return f"{self.namespace}/{self.name}" if self.name else ""


@dataclass(frozen=True, slots=True)
class Remembered:
    """All of it. ``stray``: left by nobody known; ``guessed``: maybe charged to another."""

    accounts: tuple[Account, ...] = ()
    stray: Charge = NOTHING
    guessed: Charge = NOTHING


@dataclass(frozen=True, slots=True)
class RememberedFile:
    """A hugetlbfs file, its part of the charge list, and who opened it (UIDs).

    ``root``: the inode of its file system's root, which tells it from a later one with the
    same device number. ``length`` is in pages.
    """

    file: FileKey
    path: str
    root: int
    length: int
    since: datetime
    candidates: tuple[str, ...]
    rows: tuple[Row[str], ...]


class Memory:
    """The database; one process has it at a time.

    ``remembered``: what was saved last; None when nothing was in this boot. ``files``:
    the same of files.
    ``set_aside``: where a damaged one was put that was there before.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        remembered: Remembered | None,
        set_aside: Path | None,
        files: tuple[RememberedFile, ...] = (),
    ) -> None:
        self._database = database
        self.remembered = remembered
        self.files = files
        self.set_aside = set_aside

    @classmethod
    def open(cls, directory: Path, boot_id: str) -> Memory:
        """The memory in ``directory``, which is made when it is missing.

        :raises NoMemory: when it can't be used.
        """
        path, set_aside = directory / _FILE, None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                database, remembered, files = _opened(path, boot_id)
            except (sqlite3.Error, ValueError, TypeError) as error:
                if isinstance(error, sqlite3.Error) and error.sqlite_errorcode in _UNUSABLE:
                    raise
                set_aside = _put_aside(path)
                logger.error("%s is damaged (%s) and was set aside as %s", path, error, set_aside)
                database, remembered, files = _opened(path, boot_id)
        except (OSError, sqlite3.Error) as error:
            raise NoMemory(directory, error) from error
        return cls(database, remembered, set_aside, files)

    def close(self) -> None:
        """Let the next process have it."""
        self._database.close()

    def save(
        self,
        changed: Iterable[Account],
        removed: Iterable[Account],
        stray: Charge,
        guessed: Charge,
        files: Mapping[FileKey, RememberedFile | None] | None = None,
    ) -> None:
        """Write all of this or nothing; a file that is None is gone.

        :raises NotRemembered: when nothing was written.
        """
        meta, files = {"stray": stray, "guessed": guessed}, files or {}
        with self._transaction() as database:
            database.executemany(
                "DELETE FROM accounts WHERE uid = ? AND gone = ?",
                [(each.uid, each.state is State.GONE) for each in removed],
            )
            database.executemany(
                "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                map(_row, changed),
            )
            database.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                [(key, json.dumps(charge.to_resources())) for key, charge in meta.items()],
            )
            database.executemany(
                "DELETE FROM files WHERE device = ? AND inode = ?",
                [key for key, file in files.items() if file is None],
            )
            database.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [_file_row(file) for file in files.values() if file is not None],
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
        except sqlite3.Error as error:
            raise NotRemembered(f"What pods left can't be written down: {error}.") from error


def _file_row(file: RememberedFile) -> tuple[int | str | bytes, ...]:
    return (
        *file.file,
        os.fsencode(file.path),
        file.root,
        file.length,
        file.since.isoformat(),
        json.dumps(file.candidates),
        file.rows[0].page_size.bytes if file.rows else 0,
        json.dumps([(row.first, row.last, row.owner) for row in file.rows]),
    )


def _file(row: tuple[Any, ...]) -> RememberedFile:
    device, inode, path, root, length, since, candidates, page_size, ranges = row
    file = FileKey(device, inode)
    return RememberedFile(
        file,
        os.fsdecode(path),
        root,
        length,
        datetime.fromisoformat(since),
        tuple(json.loads(candidates)),
        tuple(
            Row(file, PageSize(page_size), first, last, owner)
            for first, last, owner in json.loads(ranges)
        ),
    )


_Opened = tuple[sqlite3.Connection, Remembered | None, tuple[RememberedFile, ...]]


def _opened(path: Path, boot_id: str) -> _Opened:
    database = sqlite3.connect(path, timeout=5, isolation_level=None)
    try:
        # Held until this process ends, however it ends: two agents would undo each other.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise ValueError(verdict)
        database.execute("BEGIN EXCLUSIVE")
        (schema,) = database.execute("PRAGMA user_version").fetchone()
        if schema not in (0, _SCHEMA):
            raise ValueError(f"its layout is {schema}, not {_SCHEMA}")
        if schema == 0:
            for statement in filter(str.strip, _TABLES.split(";")):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {_SCHEMA}")
        meta = dict(database.execute("SELECT key, value FROM meta"))
        if meta.get("boot_id") != boot_id:
            database.execute("DELETE FROM accounts")
            database.execute("DELETE FROM files")
            database.execute("DELETE FROM meta")
            database.execute("INSERT INTO meta VALUES ('boot_id', ?)", (boot_id,))
            meta = {}
        database.execute("COMMIT")
        # The first save makes it known, and not the first start: before that nothing was seen.
        remembered = _load(database, meta) if "stray" in meta else None
        return database, remembered, tuple(map(_file, database.execute("SELECT * FROM files")))
    except BaseException:
        database.close()
        raise


def _load(database: sqlite3.Connection, meta: Mapping[str, str]) -> Remembered:
    rows = database.execute(
        "SELECT uid, namespace, name, quotas, demand, charge, state, since, in_files, volumes,"
        " presumed FROM accounts ORDER BY since, uid"
    )
    return Remembered(
        tuple(_account(*row) for row in rows), _charge(meta["stray"]), _charge(meta["guessed"])
    )


def _put_aside(path: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    for suffix in ("-wal", "-shm", ""):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(f"{aside}{suffix}")
    return aside


def _row(account: Account) -> tuple[str | bool, ...]:
    return (
        account.uid,
        account.state is State.GONE,
        account.namespace,
        account.name,
        json.dumps(account.quotas),
        json.dumps(account.demand.to_resources()),
        json.dumps(account.charge.to_resources()),
        json.dumps(account.in_files.to_resources()),
        account.state.value,
        account.since.isoformat(),
        json.dumps([(each.name, each.host_path) for each in account.volumes]),
        account.presumed,
    )


def _account(
    uid: str,
    namespace: str,
    name: str,
    quotas: str,
    demand: str,
    charge: str,
    state: str,
    since: str,
    in_files: str,
    volumes: str,
    presumed: int,
) -> Account:
    return Account(
        uid,
        namespace,
        name,
        tuple(json.loads(quotas)),
        _charge(demand),
        _charge(charge),
        State(state),
        datetime.fromisoformat(since),
        _charge(in_files),
        tuple(Volume(name, host_path) for name, host_path in json.loads(volumes)),
        bool(presumed),
    )


def _charge(text: str) -> Charge:
    return Charge.from_resources(json.loads(text))
