"""A test session mounts in its own namespace: other sessions don't see its hugetlbfs mounts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hugetlb_quota.node.hugetlbfs import superblocks
from tests.testnode.volumes import unmount_below
from tests.tracking import HOST, hugetlbfs

#: Collects tests as pytest does, mounts at its second argument, and runs until its input ends.
SESSION = """
import json, pytest, sys
from pathlib import Path
from tests.testnode.volumes import mount
from hugetlb_quota.node.hugetlbfs import superblocks
from tests.tracking import HOST

pytest.main(["--collect-only", "-qq", sys.argv[1]])
found = [one.point for one in superblocks(HOST)]
mount("hugetlbfs", Path(sys.argv[2]), "pagesize=2M")
print("result", json.dumps({"found": found, "after": [one.point for one in superblocks(HOST)]}))
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("tests", "apart"), [("tests/kernel/test_node_cgroup.py", True), ("tests/unit/node", False)]
)
def test_only_a_session_that_mounts_has_its_own_namespace(
    kernel: None, tmp_path: Path, tests: str, apart: bool
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    theirs.mkdir()
    with hugetlbfs(ours):
        session = subprocess.Popen(
            [sys.executable, "-c", SESSION, tests, str(theirs)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert session.stdout
            line = next(line for line in session.stdout if line.startswith("result "))
            result = json.loads(line.removeprefix("result "))
            seen = str(theirs) in {one.point for one in superblocks(HOST)}
        finally:
            session.communicate("", timeout=60)
            unmount_below(theirs)
    assert (str(ours) in result["found"], str(theirs) in result["after"], seen) == (
        not apart,
        True,
        not apart,
    )
