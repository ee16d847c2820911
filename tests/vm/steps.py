"""Announce and time steps, and run commands; a failure shows the command's output."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

STARTED = time.monotonic()


class StepFailed(Exception):
    """A step failed; the message has the end of the output."""


def say(text: str) -> None:
    """Print a line with the seconds since the start of the program."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Announce a step, and print its duration if that is more than a second."""
    say(what)
    started = time.monotonic()
    yield
    if (seconds := time.monotonic() - started) > 1:
        say(f"{what}: {seconds:.0f} s")


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float = 900.0,
) -> str:
    """Run a command; return its standard output. Raises StepFailed with the output."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=None if env is None else dict(env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise StepFailed(f"`{' '.join(words)}` did not end in {timeout:.0f} s") from error
    except FileNotFoundError as error:
        raise StepFailed(f"`{words[0]}` is not installed") from error
    if done.returncode:
        end = (done.stdout + done.stderr)[-3000:].strip()
        raise StepFailed(f"`{' '.join(words)}` ended with status {done.returncode}:\n{end}")
    return done.stdout
