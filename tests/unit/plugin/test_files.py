"""``files`` lists files that hold huge pages."""

from __future__ import annotations

from hugetlb_quota.plugin import files
from hugetlb_quota.plugin.table import Screen
from tests.unit.plugin.worlds import NOW, acme, file, report, world


def test_files_of_gone_pods() -> None:
    assert (
        files.files_table(files.held_files(acme()), NOW, Screen())
        == """\
NODE  SIZE  CHARGED  AGE  POD           QUOTA         PATH
n1    2Mi      32Mi   3h  acme-web/old  acme-web/web  /mnt/huge/segment"""
    )


def test_all_files() -> None:
    pods = [each.pod for each in files.held_files(acme(), every=True)]
    assert pods == ["acme-db/db-0", "acme-web/old"]


def test_files_of_one_namespace() -> None:
    assert [each.pod for each in files.held_files(acme(), "acme-web")] == ["acme-web/old"]
    assert files.held_files(acme(), "acme-db") == []


def test_a_file_of_an_unknown_pod() -> None:
    found = world([], [], [report("n1", [], [file("who", "2Mi"), file("", "2Mi", "own")])])
    assert [each.pod for each in files.held_files(found)] == ["(pod who)"]
    assert {each.pod for each in files.held_files(found, every=True)} == {"(pod who)", "(system)"}
