"""The protocol is never over the limit, loses no charge, and keeps no reservation for ever.

Each of its guards is needed: without it, spin finds how the protocol fails.
"""

from __future__ import annotations

import re

import pytest

from tests import preflight
from tests.model.spin import GUARDS, MODEL, SCENES, search

#: On a machine that does much else a search takes ten times as long.
pytestmark = pytest.mark.timeout(600)
searches = pytest.mark.skipif(preflight._spin() is not None, reason=str(preflight._spin()))


@searches
@pytest.mark.parametrize("scene", SCENES)
def test_the_protocol_holds(scene: str) -> None:
    found = search(scene)
    assert found.errors == 0, found.story
    assert found.whole
    assert found.states > 50_000  # a model that can't move keeps every rule


@searches
@pytest.mark.parametrize("guard", GUARDS)
def test_without_a_guard_it_fails(guard: str) -> None:
    found = search(GUARDS[guard], guard)
    assert found.errors == 1
    # It can be told, and something was admitted in it.
    assert "writes reservations" in found.story or "counts quota" in found.story


def test_every_guard_of_the_model_is_tried() -> None:
    tested = set(re.findall(r"(?:#ifn?def |defined\()([A-Z_]+)", MODEL.read_text()))
    assert tested == set(GUARDS)
