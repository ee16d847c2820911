"""Finding cgroup2 below a host root, and what is said where it can't be used."""

from pathlib import Path

import pytest

from hugetlb_quota.node.host import HostRoot, HostUnreadable, NoCgroup2, NoHugetlbController

CGROUP2 = "41 31 0:38 / {point} {options} - cgroup2 cgroup2 rw"
V1 = "42 31 0:39 / /sys/fs/cgroup/hugetlb rw - cgroup cgroup rw,hugetlb"


def host(root: Path, *mounts: str, controllers: dict[str, str] | None = None) -> HostRoot:
    """A host with these mounts, and a cgroup.controllers at each of these points."""
    (root / "proc/1").mkdir(parents=True)
    (root / "proc/1/mountinfo").write_text("\n".join(mounts) + "\n")
    for point, names in (controllers or {}).items():
        (root / point.lstrip("/")).mkdir(parents=True)
        (root / point.lstrip("/") / "cgroup.controllers").write_text(names + "\n")
    return HostRoot(root)


def at(point: str, options: str = "rw") -> str:
    return CGROUP2.format(point=point, options=options)


@pytest.mark.parametrize("point", ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/odd"])
def test_cgroup2_is_found_wherever_it_is_mounted(tmp_path: Path, point: str) -> None:
    found = host(tmp_path, at(point), controllers={point: "cpu hugetlb"}).cgroup2()
    assert found == tmp_path / point.lstrip("/")


def test_the_writable_mount_is_taken_where_there_are_two(tmp_path: Path) -> None:
    points = {"/one": "hugetlb", "/two": "hugetlb"}
    two = host(tmp_path, at("/one", "ro,nosuid"), at("/two"), controllers=points)
    assert two.cgroup2() == tmp_path / "two"


def test_the_whole_hierarchy_is_taken_before_a_part_of_it(tmp_path: Path) -> None:
    points = {"/whole": "hugetlb", "/part": "hugetlb"}
    part = at("/part").replace(" / /part", " /system.slice /part")
    assert host(tmp_path, at("/whole"), part, controllers=points).cgroup2() == tmp_path / "whole"


def test_a_mount_that_is_not_to_be_seen_from_here_is_passed_over(tmp_path: Path) -> None:
    two = host(tmp_path, at("/seen"), at("/hidden"), controllers={"/seen": "hugetlb"})
    assert two.cgroup2() == tmp_path / "seen"


def test_without_cgroup2_it_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(NoCgroup2, match=r"systemd\.unified_cgroup_hierarchy=1") as refused:
        host(tmp_path, V1).cgroup2()
    assert str(tmp_path / "proc/1/mountinfo") in str(refused.value)


def test_without_the_controller_it_says_what_the_kernel_lacks(tmp_path: Path) -> None:
    lacking = host(tmp_path, at("/cg"), controllers={"/cg": "cpu memory hugetlbfs"})
    with pytest.raises(NoHugetlbController, match="CONFIG_CGROUP_HUGETLB=y"):
        lacking.cgroup2()


def test_a_controller_held_by_cgroup_v1_is_named_with_its_place(tmp_path: Path) -> None:
    hybrid = host(tmp_path, V1, at("/cg"), controllers={"/cg": ""})
    with pytest.raises(NoHugetlbController, match=r"holds it at /sys/fs/cgroup/hugetlb"):
        hybrid.cgroup2()


def test_a_root_that_is_no_hosts_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(HostUnreadable, match="--host-root"):
        HostRoot(tmp_path).cgroup2()
    with pytest.raises(HostUnreadable, match="boot_id can't be read"):
        HostRoot(tmp_path).boot_id()


def test_the_boot_id_is_read_below_the_root(tmp_path: Path) -> None:
    path = tmp_path / "proc/sys/kernel/random/boot_id"
    path.parent.mkdir(parents=True)
    path.write_text("6687db17\n")
    assert HostRoot(tmp_path).boot_id() == "6687db17"


def test_the_host_itself_is_read_as_this_process_sees_it() -> None:
    points = [mount.point for mount in HostRoot().mounts()]
    assert "/proc" in points


def test_a_mount_of_any_name_is_no_trouble(tmp_path: Path) -> None:
    """A pod may name what it mounts as it likes, in bytes that are no text."""
    found = host(tmp_path, at("/cg"), controllers={"/cg": "hugetlb"})
    info = tmp_path / "proc/1/mountinfo"
    info.write_bytes(b"50 31 0:40 /na\xffme /pod rw - ext4 /dev/vda rw\n" + info.read_bytes())
    assert found.cgroup2() == tmp_path / "cg"
