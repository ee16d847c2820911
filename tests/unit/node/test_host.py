"""HostRoot finds cgroup2 below a host's root, and says why a host can't be used."""

from pathlib import Path

import pytest

from hugetlb_quota.node.host import HostRoot, HostUnreadable, NoCgroup2, NoHugetlbController

CGROUP2 = "41 31 0:38 / {point} {options} - cgroup2 cgroup2 rw"
V1 = "42 31 0:39 / /sys/fs/cgroup/hugetlb rw - cgroup cgroup rw,hugetlb"


def host(root: Path, *mounts: str, controllers: dict[str, str] | None = None) -> HostRoot:
    """Make a host with these mounts; ``controllers`` has the content of cgroup.controllers."""
    (root / "proc/1").mkdir(parents=True)
    (root / "proc/1/mountinfo").write_text("\n".join(mounts) + "\n")
    for point, names in (controllers or {}).items():
        (root / point.lstrip("/")).mkdir(parents=True)
        (root / point.lstrip("/") / "cgroup.controllers").write_text(names + "\n")
    return HostRoot(root)


def at(point: str, options: str = "rw") -> str:
    return CGROUP2.format(point=point, options=options)


@pytest.mark.parametrize("point", ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/odd"])
def test_finds_cgroup2_at_any_mount_point(tmp_path: Path, point: str) -> None:
    found = host(tmp_path, at(point), controllers={point: "cpu hugetlb"}).cgroup2()
    assert found == tmp_path / point.lstrip("/")


def test_prefers_a_writable_mount(tmp_path: Path) -> None:
    points = {"/one": "hugetlb", "/two": "hugetlb"}
    two = host(tmp_path, at("/one", "ro,nosuid"), at("/two"), controllers=points)
    assert two.cgroup2() == tmp_path / "two"


def test_prefers_the_whole_hierarchy_to_a_part(tmp_path: Path) -> None:
    points = {"/whole": "hugetlb", "/part": "hugetlb"}
    part = at("/part").replace(" / /part", " /system.slice /part")
    assert host(tmp_path, at("/whole"), part, controllers=points).cgroup2() == tmp_path / "whole"


def test_ignores_a_mount_that_this_process_cannot_see(tmp_path: Path) -> None:
    two = host(tmp_path, at("/seen"), at("/hidden"), controllers={"/seen": "hugetlb"})
    assert two.cgroup2() == tmp_path / "seen"


def test_says_how_to_get_cgroup2(tmp_path: Path) -> None:
    with pytest.raises(NoCgroup2, match=r"systemd\.unified_cgroup_hierarchy=1") as refused:
        host(tmp_path, V1).cgroup2()
    assert str(tmp_path / "proc/1/mountinfo") in str(refused.value)


def test_says_that_the_kernel_lacks_the_controller(tmp_path: Path) -> None:
    lacking = host(tmp_path, at("/cg"), controllers={"/cg": "cpu memory hugetlbfs"})
    with pytest.raises(NoHugetlbController, match="CONFIG_CGROUP_HUGETLB=y"):
        lacking.cgroup2()


def test_says_where_cgroup_v1_has_the_controller(tmp_path: Path) -> None:
    hybrid = host(tmp_path, V1, at("/cg"), controllers={"/cg": ""})
    with pytest.raises(NoHugetlbController, match="has the controller at /sys/fs/cgroup/hugetlb"):
        hybrid.cgroup2()


def test_says_that_a_directory_is_not_the_root_of_a_host(tmp_path: Path) -> None:
    with pytest.raises(HostUnreadable, match="--host-root"):
        HostRoot(tmp_path).cgroup2()
    with pytest.raises(HostUnreadable, match="boot_id can't be read"):
        HostRoot(tmp_path).boot_id()


def test_reads_the_boot_id_below_the_root(tmp_path: Path) -> None:
    path = tmp_path / "proc/sys/kernel/random/boot_id"
    path.parent.mkdir(parents=True)
    path.write_text("6687db17\n")
    assert HostRoot(tmp_path).boot_id() == "6687db17"


def test_reads_the_mounts_of_this_process_on_the_host_itself() -> None:
    points = [mount.point for mount in HostRoot().mounts()]
    assert "/proc" in points


def test_accepts_any_bytes_in_the_path_of_a_mount(tmp_path: Path) -> None:
    """A pod chooses the names of its mounts, and the bytes may not be text."""
    found = host(tmp_path, at("/cg"), controllers={"/cg": "hugetlb"})
    info = tmp_path / "proc/1/mountinfo"
    info.write_bytes(b"50 31 0:40 /na\xffme /pod rw - ext4 /dev/vda rw\n" + info.read_bytes())
    assert found.cgroup2() == tmp_path / "cg"
