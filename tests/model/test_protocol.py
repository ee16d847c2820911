"""The protocol is never over the limit, loses no charge, and keeps no reservation for ever.

Each guard is needed: without the guard, spin finds how the protocol fails.
"""

from __future__ import annotations

import re

import pytest

from tests import preflight
from tests.model.spin import GUARDS, MODEL, SCENES, search

#: On a busy machine a search takes ten times as long.
pytestmark = pytest.mark.timeout(600)
searches = pytest.mark.skipif(preflight._spin() is not None, reason=str(preflight._spin()))


@searches
@pytest.mark.parametrize("scene", SCENES)
def test_the_protocol_holds(scene: str) -> None:
    found = search(scene)
    assert found.errors == 0, found.story
    assert found.whole
    assert found.states > 50_000  # a model that can't do a step breaks no rule


@searches
@pytest.mark.parametrize("guard", GUARDS)
def test_the_protocol_fails_without_a_guard(guard: str) -> None:
    found = search(GUARDS[guard], guard)
    assert found.errors == 1
    # The story is readable, and admission admits something in the story.
    assert "writes reservations" in found.story or "counts quota" in found.story


def test_these_tests_remove_every_guard_of_the_model() -> None:
    tested = set(re.findall(r"(?:#ifn?def |defined\()([A-Z_]+)", MODEL.read_text()))
    assert tested == set(GUARDS)
