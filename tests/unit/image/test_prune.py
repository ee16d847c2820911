"""Pruning keeps the named classes of a package and the modules that these import."""

from __future__ import annotations

from pathlib import Path

import pytest

from image import prune

INIT = """\
_exports = {
    "LeasesApi": ".api.leases_api",
    "Lease": ".models.lease",
    "LeaseSpec": ".models.lease_spec",
    "Pod": ".models.pod",
}
"""


@pytest.fixture
def site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(prune, "ROOTS", {"kube.client": ("LeasesApi",)})
    for name, text in {
        "kube/client/__init__.py": INIT,
        "kube/client/api/__init__.py": "",
        "kube/client/api/leases_api.py": "from kube.client.models.lease import Lease\n",
        "kube/client/models/__init__.py": "",
        "kube/client/models/lease.py": "if 1:\n    from kube.client.models.lease_spec import S\n",
        "kube/client/models/lease_spec.py": "",
        "kube/client/models/pod.py": "from kube.client.models.lease import Lease\n",
        "kube/client/configuration.py": "",
        "fast/tests/test_fast.py": "x" * 1000,
        "fast/fast.pyx": "",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    record = tmp_path / "kube-1.dist-info/RECORD"
    record.parent.mkdir()
    record.write_text(
        "kube/client/models/pod.py,sha256=x,1\n"
        "kube/client/models/lease.py,sha256=y,1\n"
        "kube-1.dist-info/RECORD,,\n"
    )
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}


def test_the_roots_and_their_imports_stay(site_packages: Path) -> None:
    before = files(site_packages)
    prune.prune(site_packages)
    assert before - files(site_packages) == {
        *("kube/client/models/pod.py", "fast/tests/test_fast.py", "fast/fast.pyx")
    }


def test_the_removed_size_is_returned(site_packages: Path) -> None:
    assert prune.prune(site_packages) == 1000 + len("from kube.client.models.lease import Lease\n")


def test_the_record_names_only_existing_files(site_packages: Path) -> None:
    prune.prune(site_packages)
    assert (site_packages / "kube-1.dist-info/RECORD").read_text() == (
        "kube/client/models/lease.py,sha256=y,1\nkube-1.dist-info/RECORD,,\n"
    )


def test_an_unknown_root_fails_before_anything_is_removed(
    site_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "ROOTS", {"kube.client": ("LeasesApi", "LeaseTerm")})
    before = files(site_packages)
    with pytest.raises(prune.UnknownClassError, match=r"kube\.client gives no LeaseTerm"):
        prune.prune(site_packages)
    assert files(site_packages) == before
