"""A cluster's disk stays usable while another run makes a newer disk."""

from __future__ import annotations

from pathlib import Path

from tests.vm.root import Disk


def test_a_held_disk_outlives_its_names(tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("disk", "kernel", "initrd")]
    for name in names:
        name.write_text(name.name)
    with Disk(*names).held() as held:
        for name in names:
            name.unlink()
        read = [path.read_text() for path in (held.image, held.kernel, held.initrd)]
    assert read == ["disk", "kernel", "initrd"]
