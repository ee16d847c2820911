"""The rows of a HugeTLBNode's status that come from a reading of the host."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.reading import MountUse
from hugetlb_quota.agent.status import mount_status, pool_status, summary, timestamp, too_low
from hugetlb_quota.node.hugetlbfs import Superblock
from hugetlb_quota.node.pools import Pool
from hugetlb_quota.page_size import PageSize

MIB = 1 << 20
SMALL, LARGE = PageSize(2 * MIB), PageSize(1 << 30)


def charge(mib: int) -> Charge:
    return Charge({SMALL: mib * MIB})


def test_writes_times_in_whole_seconds_of_utc() -> None:
    time = datetime(2026, 11, 26, 9, 0, 0, 999_999, timezone(timedelta(hours=2)))
    assert timestamp(time) == "2026-11-26T07:00:00Z"
    assert timestamp(time.astimezone(UTC)) == "2026-11-26T07:00:00Z"


def test_sums_up_the_pools_of_the_whole_host() -> None:
    pools = (
        Pool(SMALL, None, total=64, free=48, reserved=4, surplus=0),
        Pool(SMALL, 0, total=64, free=48, reserved=None, surplus=0),
        Pool(LARGE, None, total=0, free=0, reserved=0, surplus=0),
    )
    assert summary(pools) == "2Mi: 96Mi/128Mi, 1Gi: 0/0"


def test_leaves_out_what_the_kernel_does_not_show_of_a_pool() -> None:
    row = {"pageSize": "hugepages-2Mi", "numaNode": 0, "total": 8, "free": 6, "surplus": 1}
    assert pool_status(Pool(SMALL, 0, 8, 6, None, 1)) == row
    whole = {"pageSize": "hugepages-2Mi", "total": 8, "free": 6, "reserved": 2, "surplus": 1}
    assert pool_status(Pool(SMALL, None, 8, 6, 2, 1)) == whole


def test_shows_the_limits_of_a_mount_only_if_it_has_them() -> None:
    point = "/dev/huge\udcff"
    limited = Superblock(7, SMALL, 8 * MIB, 4 * MIB, point, Path(point))
    row = mount_status(MountUse(limited, 2 * MIB)).to_json()
    assert row == {
        "path": "/dev/huge\\udcff",
        "pageSize": "hugepages-2Mi",
        "limit": "8Mi",
        "minimum": "4Mi",
        "used": "2Mi",
    }
    free = mount_status(MountUse(Superblock(7, SMALL, None, 0, "/a", Path("/a")), 0))
    assert free.to_json() == {"path": "/a", "pageSize": "hugepages-2Mi", "used": "0"}


def test_names_each_limit_of_kubepods_below_the_demand() -> None:
    (sentence,) = too_low(charge(4), charge(8))
    assert sentence.startswith("kubepods itself is limited to 4Mi of hugepages-2Mi, and its pods")
    assert "its pods ask for 8Mi" in sentence


def test_names_no_limit_of_kubepods_that_suffices() -> None:
    assert list(too_low(charge(8), charge(8))) == []
    assert list(too_low(Charge(), charge(8))) == []
