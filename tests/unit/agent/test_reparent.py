"""What pods left is charged to the heirs of a quota that goes, also after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.ledger import Known, Ledger
from hugetlb_quota.agent.memory import Memory
from hugetlb_quota.page_size import PageSize

SIZE = PageSize(2 << 20)
LEFT = Charge({SIZE: 3 * SIZE.bytes})


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    opened = Memory.open(tmp_path, "boot")
    yield opened
    opened.close()


def ledger_with_a_gone_pod(memory: Memory, *quotas: str) -> Ledger:
    ledger = Ledger(memory)
    ledger.settle((), {}, {})
    known = {"uid": Known("ns", "pod", quotas, LEFT, over=True)}
    ledger.seen("uid", LEFT, empty=True)
    ledger.settle((), known, {SIZE: LEFT[SIZE]})
    return ledger


def charged(ledger: Ledger) -> list[tuple[tuple[str, ...], Charge]]:
    return [(account.quotas, account.charge) for account in ledger.gone]


def test_the_heir_takes_the_quotas_place(memory: Memory) -> None:
    ledger = ledger_with_a_gone_pod(memory, "ns/leaf", "ns/other")
    ledger.reparent({"ns/leaf": "ns/root"})
    assert charged(ledger) == [(("ns/other", "ns/root"), LEFT)]


def test_without_an_heir_nobody_is_charged_and_nothing_is_lost(memory: Memory) -> None:
    ledger = ledger_with_a_gone_pod(memory, "ns/leaf")
    ledger.reparent({"ns/leaf": None})
    assert charged(ledger) == [((), LEFT)]


def test_it_is_remembered(memory: Memory, tmp_path: Path) -> None:
    ledger = ledger_with_a_gone_pod(memory, "ns/leaf")
    ledger.reparent({"ns/leaf": "ns/root"})
    ledger.save()
    memory.close()
    again = Memory.open(tmp_path, "boot")
    assert charged(Ledger(again)) == [(("ns/root",), LEFT)]
    again.close()
