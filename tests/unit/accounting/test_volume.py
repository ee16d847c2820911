"""A file gets the name of the volume that leads to the file, or no name. No name is wrong."""

from __future__ import annotations

import pytest

from hugetlb_quota.accounting.volume import Volume, volume_of

POD = "/var/lib/kubelet/pods/0f57333b-ea71/volumes"
EMPTY_DIR, LOCAL = (
    f"{POD}/kubernetes.io~empty-dir/scratch",
    f"{POD}/kubernetes.io~local-volume/pv-1",
)
DATA, CACHE = Volume("data"), Volume("cache")


@pytest.mark.parametrize(
    ("mount", "path", "volumes", "name"),
    [
        (EMPTY_DIR, "a", [], "scratch"),
        (EMPTY_DIR, "a", [DATA, Volume("host", "/")], "scratch"),
        ("/mnt/huge", "a", [Volume("huge", "/mnt/huge")], "huge"),
        ("/mnt/huge", "a", [Volume("huge", "/mnt/huge/")], "huge"),
        ("/mnt/huge", "db/a", [Volume("all", "/mnt"), Volume("db", "/mnt/huge/db")], "db"),
        ("/mnt/huge", "db/a", [Volume("db", "/mnt/huge/db"), Volume("all", "/mnt")], "db"),
        ("/mnt/huge", "dbs", [Volume("db", "/mnt/huge/db")], ""),
        ("/mnt/huge", "a", [Volume("file", "/mnt/huge/a"), Volume("dir", "/mnt/huge")], "file"),
        ("/mnt/huge", "a", [Volume("root", "/")], "root"),
        ("/mnt/huge", "a", [Volume("other", "/srv")], ""),
        ("/mnt/huge", "a", [Volume("other", "/srv"), DATA], "data"),
        ("/mnt/huge", "a", [DATA, CACHE], ""),
        ("/mnt/huge", "a", [DATA, CACHE, Volume("huge", "/mnt/huge")], "huge"),
        (LOCAL, "a", [DATA], "data"),
        (LOCAL, "a", [DATA, CACHE], "pv-1"),
        (LOCAL, "a", [], "pv-1"),
        ("", "memfd:x", [Volume("root", "/"), DATA], ""),
    ],
)
def test_the_volume_through_which_a_file_is_reached(
    mount: str, path: str, volumes: list[Volume], name: str
) -> None:
    assert volume_of(mount, path, volumes) == name
