"""The test node names cgroups and adds up requests as kubelet's own tests expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.testnode.demand import huge_page_requests, parse_bytes
from tests.testnode.hugepages import page_sizes, reserved_pages
from tests.testnode.naming import (
    Driver,
    container_name,
    kernel_size,
    pod_level,
    qos_level,
    resource_name,
)

MIB = 1 << 20
PAGE = 2 * MIB
UID = "9a1c-4f"


@pytest.mark.parametrize(
    ("driver", "qos", "path"),
    [
        ("cgroupfs", "Guaranteed", "kubepods/pod9a1c-4f"),
        ("cgroupfs", "Burstable", "kubepods/burstable/pod9a1c-4f"),
        ("cgroupfs", "BestEffort", "kubepods/besteffort/pod9a1c-4f"),
        ("systemd", "Guaranteed", "kubepods.slice/kubepods-pod9a1c_4f.slice"),
        (
            "systemd",
            "Burstable",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod9a1c_4f.slice",
        ),
        (
            "systemd",
            "BestEffort",
            "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod9a1c_4f.slice",
        ),
    ],
)
def test_names_pod_cgroups(driver: Driver, qos: str, path: str) -> None:
    assert str(pod_level(driver, qos, UID)) == path
    assert pod_level(driver, qos, UID).parent == qos_level(driver, qos)


def test_names_container_cgroups() -> None:
    assert container_name("systemd", "ab12") == "cri-containerd-ab12.scope"
    assert container_name("cgroupfs", "ab12") == "ab12"


def test_refuses_an_unknown_qos_class() -> None:
    with pytest.raises(ValueError, match="Best"):
        pod_level("systemd", "Best", UID)


@pytest.mark.parametrize(
    ("size", "kernel", "resource"),
    [
        (64 << 10, "64KB", "hugepages-64Ki"),
        (2 << 20, "2MB", "hugepages-2Mi"),
        (32 << 20, "32MB", "hugepages-32Mi"),
        (1 << 30, "1GB", "hugepages-1Gi"),
    ],
)
def test_names_page_sizes(size: int, kernel: str, resource: str) -> None:
    assert (kernel_size(size), resource_name(size)) == (kernel, resource)


@pytest.mark.parametrize(
    ("text", "count"),
    [("64Mi", 64 * MIB), ("1Gi", 1 << 30), ("2097152", PAGE), ("0", 0), ("4M", 4_000_000),
     ("2e6", 2_000_000), ("2097152000m", PAGE // 1000 * 1000 + 152)],
)  # fmt: skip
def test_parses_quantities(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "Mi", "1Zi", "one"])
def test_refuses_malformed_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="not a Kubernetes quantity"):
        parse_bytes(text)


def container(mebibytes: int, **more: Any) -> dict[str, Any]:
    return {"resources": {"requests": {"hugepages-2Mi": f"{mebibytes}Mi", "cpu": "1"}}, **more}


@pytest.mark.parametrize(
    ("spec", "mebibytes"),
    [
        ({"containers": [container(4), container(6)]}, 10),
        ({"containers": [container(4)], "initContainers": [container(6)]}, 6),
        (
            {"containers": [container(4)],
             "initContainers": [container(2, restartPolicy="Always"), container(6)]},
            8,
        ),
        (
            {"containers": [container(10)],
             "initContainers": [container(6), container(2, restartPolicy="Always")]},
            12,
        ),
        ({"containers": [container(4)], "resources": container(20)["resources"]}, 20),
        ({"containers": [container(4)], "overhead": {"hugepages-2Mi": "2Mi"}}, 6),
        ({"containers": [{"resources": {"limits": {"hugepages-2Mi": "4Mi"}}}]}, 4),
    ],
)  # fmt: skip
def test_adds_up_the_requests_of_a_pod(spec: dict[str, Any], mebibytes: int) -> None:
    assert huge_page_requests(spec) == {PAGE: mebibytes * MIB}


def test_a_pod_without_huge_pages_has_no_request() -> None:
    assert huge_page_requests({"containers": [{"resources": {"requests": {"cpu": "1"}}}]}) == {}


def test_gives_back_pages_if_not_all_can_be_reserved(kernel: None) -> None:
    nr = Path("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages")
    if 1 << 30 not in page_sizes():
        pytest.skip("this test needs a kernel with pages of 1 GiB")
    before = nr.read_text()
    with (
        pytest.raises(RuntimeError, match="requested 1000000 more huge pages"),
        reserved_pages(1 << 30, 1_000_000),
    ):
        pytest.fail("a million pages of 1 GiB")
    assert nr.read_text() == before


def test_refuses_a_page_size_that_the_kernel_lacks() -> None:
    with (
        pytest.raises(RuntimeError, match="no huge pages of 12345 bytes"),
        reserved_pages(12345, 1),
    ):
        pytest.fail("no such size")
