"""Run kubectl and helm as a user does, and wait for states."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

PATIENCE = float(os.environ.get("E2E_PATIENCE", "180"))
"""The timeout of a wait, in seconds. An emulated node starts a pod in about ten seconds."""

Json = dict[str, Any]


class CommandFailed(Exception):
    """A command failed; `output` is its output."""

    def __init__(self, command: str, output: str) -> None:
        super().__init__(f"{command}: {output}")
        self.output = output


def run(*words: str, stdin: str | None = None, timeout: float = PATIENCE + 60) -> str:
    """Run a program; return its standard output. Raises CommandFailed."""
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(" ".join(words), f"did not end in {timeout:.0f} s") from error
    if done.returncode:
        raise CommandFailed(" ".join(words[:6]), (done.stdout + done.stderr).strip())
    return done.stdout


def kubectl(*words: str, stdin: str | None = None, timeout: float = PATIENCE + 60) -> str:
    """Run kubectl; return its standard output. Raises CommandFailed."""
    return run("kubectl", *words, stdin=stdin, timeout=timeout)


def helm(*words: str, timeout: float = 900.0) -> str:
    """Run helm; return its standard output. Raises CommandFailed."""
    return run("helm", *words, timeout=timeout)


def apply(*objects: Json) -> None:
    """Apply objects with `kubectl apply`."""
    kubectl(
        "apply", "-f", "-", stdin=json.dumps({"kind": "List", "apiVersion": "v1", "items": objects})
    )


def get(kind: str, name: str, namespace: str = "") -> Json:
    """Return an object. Raises CommandFailed if it does not exist."""
    found: Json = json.loads(kubectl("get", kind, name, *_in(namespace), "-o", "json"))
    return found


def find(kind: str, name: str, namespace: str = "") -> Json | None:
    """Return an object, or None if it does not exist."""
    out = kubectl("get", kind, name, *_in(namespace), "-o", "json", "--ignore-not-found")
    found: Json | None = json.loads(out) if out.strip() else None
    return found


def items(kind: str, namespace: str = "", *words: str) -> list[Json]:
    """Return all objects of a kind in `namespace`, by default in all namespaces."""
    scope = _in(namespace) or ("--all-namespaces",)
    found: list[Json] = json.loads(kubectl("get", kind, *scope, *words, "-o", "json"))["items"]
    return found


def delete(kind: str, name: str, namespace: str = "", *words: str) -> None:
    """Delete an object and wait until it is gone."""
    kubectl("delete", kind, name, *_in(namespace), "--ignore-not-found", *words)


def wait(what: str, done: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Call `done` until its result is true; return the result.

    A CommandFailed counts as false. Raises AssertionError with the last result or error.
    """
    deadline = time.monotonic() + patience
    pause = 0.3
    while True:
        try:
            result = done()
        except CommandFailed as error:
            result, last = None, str(error)
        else:
            last = repr(result)
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience:.0f} s for {what}; last: {last}")
        time.sleep(pause)
        pause = min(pause * 1.3, 2.0)


def _in(namespace: str) -> tuple[str, ...]:
    return ("--namespace", namespace) if namespace else ()
