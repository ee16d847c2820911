"""The mounts and capabilities of the DaemonSet are enough for the agent.

The test makes the namespaces of a container, and mounts the chart's volumes like a runtime.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hugetlb_quota.node.host import HostRoot, UnusableHost
from tests.kernel import charge_reading
from tests.kube import chart
from tests.kube.api import Object
from tests.testnode.hugepages import reserved_pages
from tests.tracking import PAGE, hugetlbfs

LIMIT = "hugetlb.2MB.rsvd.max"


@pytest.fixture
def pod_cgroup() -> Iterator[Path]:
    """A pod's cgroup beside the agent's, in a subtree of this test."""
    if os.geteuid() != 0:
        pytest.skip("root is needed to make cgroups and namespaces")
    if not (shutil.which("unshare") and shutil.which("setpriv")):
        pytest.skip("unshare and setpriv (util-linux) are needed to make a container by hand")
    try:
        root = HostRoot().cgroup2() / f"hq-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    except UnusableHost as error:
        pytest.skip(str(error))
    made = [root, root / "agent", root / "pod"]
    made[0].mkdir()
    try:
        (root / "cgroup.subtree_control").write_text("+hugetlb")
        for cgroup in made[1:]:
            cgroup.mkdir()
        yield root / "pod"
    finally:
        for cgroup in reversed(made):
            if cgroup.exists():
                cgroup.rmdir()


def test_sets_limits_and_reads_pools_mounts_and_the_charge_list(
    helm: Path, pod_cgroup: Path, tmp_path: Path
) -> None:
    reading = charge_reading.build()
    root = tmp_path / "root"
    root.mkdir()
    pod = agent_pod(helm)
    program = (
        "import asyncio\n"
        "from pathlib import Path\n"
        "from hugetlb_quota.node.charge_reader import ChargeReader\n"
        "from hugetlb_quota.node.hugetlbfs import superblocks\n"
        "from hugetlb_quota.node.host import HostRoot\n"
        f"host = HostRoot(Path({str(root)!r}))\n"
        f"pod = host.cgroup2() / {pod_cgroup.parent.name!r} / 'pod'\n"
        f"(pod / {LIMIT!r}).write_text('4194304')\n"
        "assert len(host.boot_id()) == 36\n"
        "superblocks(host)\n"
        "async def read():\n"
        f"    reader = ChargeReader(Path({str(reading)!r}))\n"
        "    print([file.path for file in (await reader.read()).files])\n"
        "    await reader.close()\n"
        "asyncio.run(read())\n"
        "pools = host.at('/sys/kernel/mm/hugepages')\n"
        "total = pools / 'hugepages-2048kB' / 'nr_hugepages'\n"
        "total.write_text(total.read_text())\n"
    )
    assert (pod_cgroup / LIMIT).read_text() != "4194304\n"
    with reserved_pages(PAGE, 1), hugetlbfs(tmp_path / "huge") as superblock:
        # Another user owns the directory, as with a pod's volume with an fsGroup.
        with (superblock.path / "file-of-another").open("w") as file:
            os.posix_fallocate(file.fileno(), 0, PAGE)
        os.chown(superblock.path, 4711, 4711)
        superblock.path.chmod(0o700)
        done = _in_container(pod, root, pod_cgroup.parent / "agent", program)
    assert "file-of-another" in done.stdout, done.stderr
    # The agent has set the limit. The pools are read-only, because it must not change them.
    assert "Read-only file system" in done.stderr
    assert "nr_hugepages" in done.stderr
    assert (pod_cgroup / LIMIT).read_text() == "4194304\n"


def test_with_reclaim_the_agent_sees_only_the_named_hugetlbfs(
    helm: Path, pod_cgroup: Path, tmp_path: Path
) -> None:
    root, point = tmp_path / "root", tmp_path / "huge"
    root.mkdir()
    values = {"agent": {"reclaim": True, "reclaimPaths": [str(point)]}}
    pod = agent_pod(helm, values)
    program = (
        "import os\n"
        "from pathlib import Path\n"
        "from hugetlb_quota.node.reclaim import reclaim\n"
        f"root = Path({str(root)!r})\n"
        f"point = root / {str(point).lstrip('/')!r}\n"
        "found = (point / 'file').stat()\n"
        "reclaim(point, ['file'], found.st_dev, found.st_ino)\n"
        "print(sorted(os.listdir(root)))\n"
    )
    with hugetlbfs(point) as superblock:
        (superblock.path / "file").touch()
        os.chown(superblock.path / "file", 4711, 4711)
        os.chown(superblock.path, 4711, 4711)
        superblock.path.chmod(0o1700)
        done = _in_container(pod, root, pod_cgroup.parent / "agent", program)
        assert list(superblock.path.iterdir()) == []
    assert done.stdout == f"['proc', 'sys', {str(point).split('/')[1]!r}]\n", done.stderr


def agent_pod(helm: Path, values: Object | None = None) -> Object:
    """The pod of the DaemonSet."""
    (daemon_set,) = chart.render(helm, values=values or {}).of_kind("DaemonSet")
    found: Object = daemon_set["spec"]["template"]["spec"]
    return found


def _in_container(
    pod: Object, root: Path, own_cgroup: Path, program: str
) -> subprocess.CompletedProcess[str]:
    (container,) = pod["containers"]
    host_paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    script = ["set -e", f"echo $$ > {own_cgroup}/cgroup.procs"]
    mounts = []
    # Runtimes mount the shorter paths first.
    for mount in sorted(container["volumeMounts"], key=lambda each: each["mountPath"].count("/")):
        assert mount["mountPropagation"] == "HostToContainer"
        target = root / mount["mountPath"].removeprefix("/host/")
        if mount["name"] != "cgroup":  # that is in sys
            target.mkdir(parents=True)
        mounts.append(f"mount --rbind {host_paths[mount['name']]} {target}")
        if mount.get("readOnly"):
            mounts.append(f"mount -o remount,bind,ro {target}")
    security = container["securityContext"]
    assert (security["capabilities"]["drop"], security["runAsUser"]) == (["ALL"], 0)
    assert "hostPID" not in pod
    kept = ",".join(["-all", *(f"+{name.lower()}" for name in security["capabilities"]["add"])])
    drop = ["setpriv", f"--bounding-set={kept}", "--inh-caps=-all", "--no-new-privs"]
    mounts.append(shlex.join(["exec", *drop, sys.executable, "-c", program]))
    inside = shlex.join(["sh", "-e", "-c", "\n".join(mounts)])
    script.append(f"exec unshare --mount --cgroup --propagation slave {inside}")
    return subprocess.run(
        ["sh", "-c", "\n".join(script)], capture_output=True, text=True, timeout=60
    )
