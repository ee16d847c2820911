"""Common programs with huge pages in containers: they fall back or report the error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.kubectl import Json, apply, kubectl
from tests.e2e.pods import container, pod, quota, wait_counted, wait_log, wait_phase

Seen = Callable[[str], None]
#: initdb and postgres refuse to run as root.
NOBODY = {"runAsUser": 65534, "runAsGroup": 65534}
DATA = "/tmp/data"
ENOMEM = "Cannot allocate memory"


def postgres(name: str, namespace: str, prepare: str, *options: str, **more: Any) -> Json:
    """A pod that prepares a database and runs PostgreSQL."""
    serve = " ".join(
        ("exec postgres", "-D", DATA, "-k", "/tmp", *(f"-c {each}" for each in options))
    )
    main = container("sh", "-c", f"set -e; {prepare}; {serve}", securityContext=NOBODY, **more)
    return pod(namespace, name, main, restartPolicy="Never")


COPY = f"cp -r /var/lib/postgresql/e2e {DATA}; chmod 700 {DATA}"
"""Copies the database that initdb made in the workload image."""
READY = "database system is ready to accept connections"


@pytest.fixture
def governed(namespace: str) -> str:
    """A namespace with a quota of 256Mi."""
    apply(quota(namespace, "q", "256Mi"))
    wait_counted(namespace, "q")
    return namespace


def shows(namespace: str, name: str, setting: str) -> str:
    """The value of a PostgreSQL setting."""
    query = ("psql", "-h", "/tmp", "-U", "nobody", "-Atc", f"show {setting}", "postgres")
    return kubectl("exec", "--namespace", namespace, name, "--", *query).strip()


def test_postgresql(governed: str, seen: Seen) -> None:
    buffers = "shared_buffers=48MB"
    apply(
        postgres(
            "without-request", governed, f"initdb -D {DATA} -U nobody", "huge_pages=try", buffers
        ),
        postgres("with-request", governed, COPY, "huge_pages=on", buffers, pages="96Mi"),
        postgres("too-small", governed, COPY, "huge_pages=on", buffers, pages="16Mi"),
    )
    wait_log(governed, "with-request", READY)
    assert shows(governed, "with-request", "huge_pages_status") == "on"
    wait_log(governed, "without-request", READY)
    assert shows(governed, "without-request", "huge_pages_status") == "off"
    found = wait_phase(governed, "too-small", "Failed")
    log = wait_log(governed, "too-small", ENOMEM)
    (status,) = found["status"]["containerStatuses"]
    assert status["state"]["terminated"]["exitCode"] == 1, "not by a signal"
    assert "could not map anonymous shared memory" in log
    seen("try without request: runs on small pages; on with 96Mi: huge_pages_status on")
    seen("on with 16Mi: exit status 1, could not map anonymous shared memory")


def test_libhugetlbfs_falls_back_with_a_warning(governed: str, seen: Seen) -> None:
    traced = "strace -f -e trace=mmap -o /tmp/trace region 8; grep MAP_HUGETLB /tmp/trace"
    apply(pod(governed, "p", container("sh", "-c", f"{traced}; exec sleep infinity", pages="4Mi")))
    log = wait_log(governed, "p", "ENOMEM")
    assert "libhugetlbfs: WARNING" in log
    assert "region of 8 MiB on small pages" in log
    line = next(each for each in log.splitlines() if "MAP_HUGETLB" in each and "ENOMEM" in each)
    seen(line[:110])
    seen(next(each for each in log.splitlines() if "WARNING" in each)[:110])


def test_glibc_malloc_falls_back(governed: str, seen: Seen) -> None:
    """With glibc.malloc.hugetlb=2, malloc maps huge pages, or small pages if that mmap fails."""
    traced = "strace -f -e trace=mmap -E GLIBC_TUNABLES=glibc.malloc.hugetlb=2 -o /tmp/trace"
    script = f"yes page | head -c 16M | {traced} sort -S 32M | wc -c; grep -c ENOMEM /tmp/trace"
    apply(pod(governed, "p", container("sh", "-c", f"{script}; echo done; exec sleep infinity")))
    log = wait_log(governed, "p", "done")
    sorted_bytes, refused = (int(line) for line in log.split()[-3:-1])
    assert sorted_bytes >= 16 << 20
    assert refused > 0
    seen(f"16 MiB sorted on small pages; mmap gave ENOMEM {refused} times")
