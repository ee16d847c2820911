"""What the DaemonSet mounts, and its three capabilities, are enough for the agent's work.

A container's namespaces are made by hand, with the shipped volumes mounted as a runtime would.
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
from tests.kube import chart
from tests.kube.api import Object
from tests.tracking import hugetlbfs

LIMIT = "hugetlb.2MB.rsvd.max"


@pytest.fixture
def pod_cgroup() -> Iterator[Path]:
    """A pod's cgroup, beside the container's own, in a subtree of this test."""
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


def test_sets_limits_reads_pools_sees_files_and_remembers(
    helm: Path, pod_cgroup: Path, tmp_path: Path
) -> None:
    root, state = tmp_path / "root", tmp_path / "state"
    root.mkdir()
    state.mkdir()
    (daemon_set,) = chart.render(helm).of_kind("DaemonSet")
    pod = daemon_set["spec"]["template"]["spec"]
    program = (
        "from pathlib import Path\n"
        "from hugetlb_quota.node.hugetlbfs import scan, superblocks\n"
        "from hugetlb_quota.agent.memory import Memory\n"
        "from hugetlb_quota.node.host import HostRoot\n"
        f"host = HostRoot(Path({str(root)!r}))\n"
        f"pod = host.cgroup2() / {pod_cgroup.parent.name!r} / 'pod'\n"
        f"(pod / {LIMIT!r}).write_text('4194304')\n"
        "assert len(host.boot_id()) == 36\n"
        "Memory.open(host.at('/var/lib/hugetlb-quota'), host.boot_id()).close()\n"
        # By its own mounts: where tests run, init may be out of reach for anybody.
        "host = HostRoot()\n"
        f"(found,) = (s for s in superblocks(host) if s.point == {str(tmp_path / 'huge')!r})\n"
        "assert [file.path for file in scan(found)] == ['file']\n"
        f"host = HostRoot(Path({str(root)!r}))\n"
        "pools = host.at('/sys/kernel/mm/hugepages')\n"
        "total = pools / 'hugepages-2048kB' / 'nr_hugepages'\n"
        "total.write_text(total.read_text())\n"
    )
    assert (pod_cgroup / LIMIT).read_text() != "4194304\n"
    with hugetlbfs(tmp_path / "huge") as superblock:
        # Of another user, as a pod's volume with an fsGroup is.
        (superblock.path / "file").touch()
        os.chown(superblock.path, 4711, 4711)
        superblock.path.chmod(0o700)
        done = _in_container(pod, root, state, pod_cgroup.parent / "agent", program)
    # The limit is set; the pools, which are none of its business to change, are read-only.
    assert "Read-only file system" in done.stderr
    assert "nr_hugepages" in done.stderr
    assert (state / "agent.sqlite").exists()
    assert (pod_cgroup / LIMIT).read_text() == "4194304\n"


def _in_container(
    pod: Object, root: Path, state: Path, own_cgroup: Path, program: str
) -> subprocess.CompletedProcess[str]:
    (container,) = pod["containers"]
    host_paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    # DirectoryOrCreate; this host's own is an agent's that may run here.
    assert host_paths["state"] == "/var/lib/hugetlb-quota"
    host_paths["state"] = str(state)
    script = ["set -e", f"echo $$ > {own_cgroup}/cgroup.procs"]
    mounts = []
    # Runtimes mount the shallower first.
    for mount in sorted(container["volumeMounts"], key=lambda each: each["mountPath"].count("/")):
        assert mount["mountPropagation"] == "HostToContainer"
        target = root / mount["mountPath"].removeprefix("/host/")
        if mount["mountPath"].count("/") == 2 or mount["name"] == "state":
            target.mkdir(parents=True)
        mounts.append(f"mount --rbind {host_paths[mount['name']]} {target}")
        if mount.get("readOnly"):
            mounts.append(f"mount -o remount,bind,ro {target}")
    security = container["securityContext"]
    assert (security["capabilities"]["drop"], security["runAsUser"]) == (["ALL"], 0)
    assert pod["hostPID"]
    kept = ",".join(["-all", *(f"+{name.lower()}" for name in security["capabilities"]["add"])])
    drop = ["setpriv", f"--bounding-set={kept}", "--inh-caps=-all", "--no-new-privs"]
    mounts.append(shlex.join(["exec", *drop, sys.executable, "-c", program]))
    inside = shlex.join(["sh", "-e", "-c", "\n".join(mounts)])
    script.append(f"exec unshare --mount --cgroup --propagation slave {inside}")
    return subprocess.run(
        ["sh", "-c", "\n".join(script)], capture_output=True, text=True, timeout=60
    )
