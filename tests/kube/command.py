"""Run kubectl and helm with the API server of a control plane."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.kube.process import ProgramError


@dataclass(frozen=True)
class Command:
    """The real kubectl or helm; call the object with the arguments."""

    program: Path
    home: Path
    """The folder for the program's own files, such as kubectl's discovery cache."""
    kubeconfig: Path
    """The default identity."""
    timeout: float
    """The default time limit, in seconds."""

    def __call__(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002 - the word of subprocess.run
        check: bool = True,
        kubeconfig: Path | None = None,
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the program to its end. With `check`, raises ProgramError if the program fails."""
        done = subprocess.run(
            [str(self.program), *args],
            input=input,
            capture_output=True,
            text=True,
            timeout=self.timeout if timeout is None else timeout,
            env={
                "KUBECONFIG": str(kubeconfig or self.kubeconfig),
                "HOME": str(self.home),
                "PATH": os.environ.get("PATH", ""),
            },
        )
        if check and done.returncode:
            raise ProgramError(f"{self.program.name} {' '.join(args)}: {done.stderr.strip()}")
        return done
