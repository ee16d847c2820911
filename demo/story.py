"""Telling a story in scenes, in the terminal and as JSON."""

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

Outcome = Literal["as expected", "otherwise", "left out"]


class Otherwise(Exception):
    """A scene came out otherwise than expected; the sentence says how."""


class LeftOut(Exception):
    """A scene can't be shown here; the sentence says what is missing."""


@dataclass
class Scene:
    """One scene: what is expected, what came of it, and what was measured."""

    name: str
    expectation: str
    outcome: Outcome = "as expected"
    detail: str = ""
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


class Story:
    """The scenes told so far.

    Colours only where someone looks: on a terminal, and not when NO_COLOR is set.
    """

    def __init__(self) -> None:
        self.scenes: list[Scene] = []
        self._colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    @contextmanager
    def scene(self, name: str, expectation: str) -> Iterator[Scene]:
        """Tell one scene; :class:`LeftOut` inside ends only this one."""
        scene = Scene(name, expectation)
        self.scenes.append(scene)
        print(f"\n{self._paint('1', f'{len(self.scenes)}. {name}')}", flush=True)
        self.say(f"Expected: {expectation}")
        started = time.monotonic()
        try:
            yield scene
            print(self._paint("32", "   ✔ as expected"), flush=True)
        except LeftOut as reason:
            scene.outcome, scene.detail = "left out", str(reason)
            print(self._paint("33", f"   - left out: {reason}"), flush=True)
        except BaseException as error:
            scene.outcome, scene.detail = "otherwise", f"{error}" or type(error).__name__
            print(self._paint("31", f"   ✘ otherwise: {scene.detail}"), flush=True)
            raise
        finally:
            scene.seconds = round(time.monotonic() - started, 2)

    def say(self, text: str) -> None:
        """A sentence, wrapped."""
        print(textwrap.fill(text, WIDTH, initial_indent="   ", subsequent_indent="   "), flush=True)

    def show(self, text: str) -> None:
        """What a program printed, or a drawing, as it is."""
        print(self._paint("2", textwrap.indent(text.rstrip(), "   │ ", lambda _: True)), flush=True)

    def progress(self, text: str) -> None:
        """A step of something that takes long."""
        print(self._paint("2", f"   … {text}"), flush=True)

    def save(self, path: Path) -> None:
        """Write every scene as JSON."""
        path.write_text(json.dumps({"scenes": [asdict(each) for each in self.scenes]}, indent=2))

    def _paint(self, colour: str, text: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colours else text


def expect(holds: object, otherwise: str) -> None:
    """End the scene with the sentence ``otherwise`` unless it ``holds``."""
    if not holds:
        raise Otherwise(otherwise)
