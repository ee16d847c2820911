"""The three spellings of a page size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.page_size import PageSize, UnknownPageSize


@pytest.mark.parametrize(
    ("resource", "cgroup", "sysfs"),
    [
        ("hugepages-64Ki", "hugetlb.64KB", "hugepages-64kB"),
        ("hugepages-2Mi", "hugetlb.2MB", "hugepages-2048kB"),
        ("hugepages-512Mi", "hugetlb.512MB", "hugepages-524288kB"),
        ("hugepages-1Gi", "hugetlb.1GB", "hugepages-1048576kB"),
        ("hugepages-16Gi", "hugetlb.16GB", "hugepages-16777216kB"),
    ],
)
def test_a_size_has_three_spellings(resource: str, cgroup: str, sysfs: str) -> None:
    size = PageSize.from_resource(resource)
    assert (size.resource, size.cgroup, size.sysfs) == (resource, cgroup, sysfs)


@given(st.sampled_from(PageSize.all()))
def test_every_spelling_leads_back_to_its_size(size: PageSize) -> None:
    assert PageSize.from_resource(size.resource) == size
    assert PageSize.from_cgroup_file(f"{size.cgroup}.rsvd.max") == size
    assert PageSize.from_sysfs(size.sysfs) == size


def test_another_spelling_of_the_quantity_is_the_same_size() -> None:
    assert PageSize.from_resource("hugepages-2048Ki") == PageSize.from_resource("hugepages-2Mi")


@pytest.mark.parametrize(
    "name",
    ["hugepages-", "hugepages-3Mi", "hugepages--2Mi", "hugepages-2Mb", "cpu", "2Mi", "hugepages-0"],
)
def test_an_unknown_size_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnknownPageSize, match="known sizes are hugepages-64Ki") as refusal:
        PageSize.from_resource(name)
    assert repr(name) in str(refusal.value)


@pytest.mark.parametrize("name", ["hugetlb.2MB", "memory.max", "hugetlb.2TB.max", "2MB.max"])
def test_another_file_name_is_refused(name: str) -> None:
    with pytest.raises(UnknownPageSize):
        PageSize.from_cgroup_file(name)
