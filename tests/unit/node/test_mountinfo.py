"""mountinfo as the kernel prints it."""

from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.node.host import Mount, parse_mountinfo

LINE = "41 31 0:38 / /sys/fs/cgroup/unified rw,nosuid shared:9 master:1 - cgroup2 cgroup2 rw,ns\n"


def test_every_field_is_read_whatever_optional_fields_come_between() -> None:
    (mount,) = parse_mountinfo(LINE)
    assert mount == Mount(
        root="/",
        point="/sys/fs/cgroup/unified",
        options=frozenset({"rw", "nosuid"}),
        type="cgroup2",
        super_options=frozenset({"rw", "ns"}),
    )


def test_a_line_without_optional_fields() -> None:
    (mount,) = parse_mountinfo("22 1 8:1 / / rw - ext4 /dev/sda1 rw")
    assert (mount.point, mount.type) == ("/", "ext4")


def test_a_mount_point_that_holds_a_lone_hyphen_is_escaped_and_read_back() -> None:
    (mount,) = parse_mountinfo(r"22 1 8:1 /a\040-\040b /mnt/c\134d\011e rw - ext4 /dev/sda1 rw")
    assert (mount.root, mount.point) == ("/a - b", "/mnt/c\\d\te")


def test_what_is_no_mountinfo_is_passed_over() -> None:
    assert parse_mountinfo(f"\nnonsense\n1 2 3 - cgroup2 x\n{LINE}") == parse_mountinfo(LINE)


@given(st.text(st.characters(min_codepoint=9, max_codepoint=126), min_size=1))
def test_every_path_survives_the_kernels_escaping(path: str) -> None:
    def mangle(text: str) -> str:  # fs/proc_namespace.c: " \t\n\\", and seq_file's "#"
        return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in text)

    path = path.replace("\r", "").replace("\x0b", "").replace("\x0c", "")
    path = "".join(c for c in path if c not in "\x1c\x1d\x1e")
    (mount,) = parse_mountinfo(f"1 2 0:3 / /{mangle(path)} rw - cgroup2 none rw")
    assert mount.point == f"/{path}"
