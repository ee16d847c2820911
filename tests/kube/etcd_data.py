"""Back up and restore the data of etcd."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.kube.process import Child


@dataclass(frozen=True)
class EtcdData:
    """The data directory of one etcd."""

    directory: Path

    def back_up(self, etcd: Child, backup: Path) -> None:
        """Copy the present data of the running `etcd` to the new directory `backup`."""
        # Pause etcd during the copy. The copy is like the data after a crash, which etcd accepts.
        etcd.pause()
        try:
            shutil.copytree(self.directory, backup)
        finally:
            etcd.resume()

    def restore(self, backup: Path) -> None:
        """Replace the data by a backup; etcd must not run."""
        shutil.rmtree(self.directory)
        shutil.copytree(backup, self.directory)
