"""Charges that only an unreadable report explains stay until all reports are readable."""

from __future__ import annotations

from collections.abc import Iterable

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import Tally
from hugetlb_quota.controller.counting.nodes import NodeReport
from hugetlb_quota.controller.counting.unread import UnreadCharges

KEY = QuotaKey("ns", "q")
LEFT = Charge.from_resources({"hugepages-2Mi": "6Mi"})
UNREADABLE = NodeReport("worker", None, None, 0)
READABLE = NodeReport("worker", None, "boot", 7)


def retained(unread: UnreadCharges, tally: Tally, *reports: NodeReport) -> Charge:
    counter = Counter(KEY, NOTHING, pods=LEFT, retained=LEFT)
    unread.update(lambda _: tally, [counter], reports)
    return unread.complete(KEY, tally).retained


def updated(unread: UnreadCharges, *reports: NodeReport) -> Iterable[QuotaKey]:
    return unread.update(lambda _: Tally(), [Counter(KEY, NOTHING, pods=LEFT)], reports)


def test_a_charge_that_the_first_count_lacks_stays_until_all_reports_are_readable() -> None:
    unread = UnreadCharges()
    assert retained(unread, Tally(pods=LEFT), UNREADABLE) == LEFT
    # The charge of a new pod is added.
    assert retained(unread, Tally(pods=LEFT + LEFT), UNREADABLE) == LEFT
    assert retained(unread, Tally(), READABLE) == NOTHING
    # From now on the last readable report of each node is counted.
    assert retained(unread, Tally(), UNREADABLE) == NOTHING
    assert retained(UnreadCharges(), Tally(), READABLE) == NOTHING


def test_an_update_returns_the_quotas_with_a_new_or_ended_unread_charge() -> None:
    unread = UnreadCharges()
    assert updated(unread, UNREADABLE) == {KEY}
    assert updated(unread, UNREADABLE) == set()
    assert updated(unread, READABLE) == {KEY}
    assert updated(unread, READABLE) == set()
