"""Parses mountinfo as the kernel prints it."""

import os

from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.node.host import Mount, parse_mountinfo

LINE = "41 31 0:38 / /sys/fs/cgroup/unified rw,nosuid shared:9 master:1 - cgroup2 cgroup2 rw,ns\n"


def test_reads_every_field_around_the_optional_fields() -> None:
    (mount,) = parse_mountinfo(LINE)
    assert mount == Mount(
        device=os.makedev(0, 38),
        root="/",
        point="/sys/fs/cgroup/unified",
        options=frozenset({"rw", "nosuid"}),
        type="cgroup2",
        super_options=frozenset({"rw", "ns"}),
    )


def test_reads_a_line_without_optional_fields() -> None:
    (mount,) = parse_mountinfo("22 1 8:1 / / rw - ext4 /dev/sda1 rw")
    assert (mount.point, mount.type) == ("/", "ext4")


def test_reads_a_mount_point_with_a_single_hyphen() -> None:
    (mount,) = parse_mountinfo(r"22 1 8:1 /a\040-\040b /mnt/c\134d\011e rw - ext4 /dev/sda1 rw")
    assert (mount.root, mount.point) == ("/a - b", "/mnt/c\\d\te")


def test_ignores_lines_that_are_not_mountinfo() -> None:
    other = LINE.replace("0:38", "0")
    text = f"\nnonsense\n1 2 3 - cgroup2 x\n{other}{LINE}"
    assert parse_mountinfo(text) == parse_mountinfo(LINE)


@given(st.text(st.characters(min_codepoint=9, max_codepoint=0x2030), min_size=1))
def test_reads_back_every_path_that_the_kernel_escapes(path: str) -> None:
    def mangle(text: str) -> str:  # fs/proc_namespace.c: " \t\n\\", and seq_file's "#"
        return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in text)

    (mount,) = parse_mountinfo(f"1 2 0:3 / /{mangle(path)} rw - cgroup2 none rw")
    assert mount.point == f"/{path}"
