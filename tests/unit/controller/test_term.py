"""Whether a controller still leads, and which counts it may overwrite."""

from __future__ import annotations

import logging

import pytest

from hugetlb_quota.controller import term
from hugetlb_quota.controller.term import SURE_FOR, Superseded, Term
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.lease import LeadershipLost
from hugetlb_quota.kube.quotas import QuotaObject


class Lease:
    """The Lease as this controller reads it, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: int | Exception = 5
        self.reads = 0
        self.now = 100.0
        monkeypatch.setattr(term, "_now", lambda: self.now)
        self.term = Term(self._read)

    async def _read(self) -> int:
        self.reads += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def lease(monkeypatch: pytest.MonkeyPatch) -> Lease:
    return Lease(monkeypatch)


def counted(under: int) -> QuotaObject:
    return QuotaObject.from_json(
        {
            "metadata": {"namespace": "ns", "name": "q", "uid": "u", "resourceVersion": "9"},
            "spec": {"hard": {"hugepages-2Mi": "64Mi"}},
            "status": {"countedUnder": str(under)},
        }
    )


async def test_one_read_of_the_lease_is_good_for_five_seconds(lease: Lease) -> None:
    for _ in range(3):
        assert await lease.term.is_held()
    assert (lease.reads, lease.term.number) == (1, 5)
    lease.now += SURE_FOR
    assert await lease.term.is_held()
    assert lease.reads == 2


async def test_a_lease_that_cant_be_read_is_not_held(lease: Lease) -> None:
    lease.answer = errors.ApiUnreachable("no connection")
    assert not await lease.term.is_held()
    lease.answer = 5
    assert await lease.term.is_held()


async def test_the_lease_of_another_controller_ends_this_controller(lease: Lease) -> None:
    lease.answer = LeadershipLost("held by another")
    with pytest.raises(LeadershipLost):
        await lease.term.is_held()


async def test_a_count_of_a_later_term_is_not_overwritten(lease: Lease) -> None:
    assert await lease.term.is_held()
    lease.term.check(counted(under=4))
    lease.term.check(counted(under=5))
    with pytest.raises(Superseded, match="HugeTLBQuota ns/q has the term 6"):
        lease.term.check(counted(under=6))


async def test_after_a_restore_of_etcd_later_terms_are_overwritten(
    lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    assert await lease.term.is_held()
    with caplog.at_level(logging.ERROR):
        await lease.term.check_lease(Superseded(counted(under=8)))
    assert "etcd was restored from a backup" in caplog.text
    lease.term.check(counted(under=8))
    with pytest.raises(Superseded):
        lease.term.check(counted(under=9))


async def test_a_renewed_lease_raises_the_own_term(
    lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    assert await lease.term.is_held()
    lease.answer = 9
    await lease.term.check_lease(Superseded(counted(under=8)))
    assert caplog.text == ""
    lease.term.check(counted(under=9))


async def test_a_lease_that_cant_be_read_allows_nothing(lease: Lease) -> None:
    assert await lease.term.is_held()
    lease.answer = errors.ApiUnreachable("no connection")
    await lease.term.check_lease(Superseded(counted(under=8)))
    with pytest.raises(Superseded):
        lease.term.check(counted(under=8))
