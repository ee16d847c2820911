"""Shows scenes in the terminal, and saves their results as JSON."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

WIDTH = 100

Outcome = Literal["as expected", "unexpected", "skipped"]


class Unexpected(Exception):
    """The result of a scene is not as expected; the message says what differs."""


class Skipped(Exception):
    """The scene can't run on this machine; the message says what is missing."""


@dataclass
class Scene:
    """One scene: the expectation, the result and the measurements."""

    name: str
    expectation: str
    outcome: Outcome = "as expected"
    detail: str = ""
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


class Story:
    """The scenes until now.

    The output has colours only on a terminal, and only if NO_COLOR is not set.
    """

    def __init__(self) -> None:
        self.scenes: list[Scene] = []
        self._colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    @contextmanager
    def scene(self, name: str, expectation: str) -> Iterator[Scene]:
        """Show one scene. :class:`Skipped` ends only this scene."""
        scene = Scene(name, expectation)
        self.scenes.append(scene)
        print(f"\n{self._paint('1', f'{len(self.scenes)}. {name}')}", flush=True)
        self.say(f"Expected: {expectation}")
        started = time.monotonic()
        try:
            yield scene
            print(self._paint("32", "   ✔ as expected"), flush=True)
        except Skipped as reason:
            scene.outcome, scene.detail = "skipped", str(reason)
            print(self._paint("33", f"   - skipped: {reason}"), flush=True)
        except BaseException as error:
            scene.outcome, scene.detail = "unexpected", f"{error}" or type(error).__name__
            print(self._paint("31", f"   ✘ unexpected: {scene.detail}"), flush=True)
            raise
        finally:
            scene.seconds = round(time.monotonic() - started, 2)

    def say(self, text: str) -> None:
        """Print a sentence, wrapped."""
        print(textwrap.fill(text, WIDTH, initial_indent="   ", subsequent_indent="   "), flush=True)

    def show(self, text: str) -> None:
        """Print the output of a program, or a drawing, unchanged."""
        print(self._paint("2", textwrap.indent(text.rstrip(), "   │ ", lambda _: True)), flush=True)

    def progress(self, text: str) -> None:
        """Print a step of a long operation."""
        print(self._paint("2", f"   … {text}"), flush=True)

    def save(self, path: Path) -> None:
        """Write all scenes as JSON."""
        path.write_text(json.dumps({"scenes": [asdict(each) for each in self.scenes]}, indent=2))

    def _paint(self, colour: str, text: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colours else text


def expect(holds: object, difference: str) -> None:
    """Raise Unexpected with ``difference`` unless ``holds`` is true."""
    if not holds:
        raise Unexpected(difference)
