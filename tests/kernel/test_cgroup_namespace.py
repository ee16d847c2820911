"""The agent in a container under cgroup2 with nsdelegate: it can limit all other containers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hugetlb_quota.node.cgroup import write_limit
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.page_size import PageSize
from tests.kernel.agent_process import ID, Agent, Api, bind, limits, make_cgroup, until
from tests.testnode import naming

SMALL = PageSize(2 << 20)


def mount(*arguments: str) -> None:
    subprocess.run(("mount", *arguments), check=True, timeout=30)


def unmount(point: Path) -> None:
    subprocess.run(("umount", "--recursive", "--lazy", str(point)), check=True, timeout=30)


def delegates() -> bool:
    return any(
        "nsdelegate" in each.super_options for each in HostRoot().mounts() if each.type == "cgroup2"
    )


def set_delegation(point: Path, wanted: bool) -> None:
    """Set or clear nsdelegate for all of cgroup2: a mount in the first namespace does this."""
    mount("-t", "cgroup2", *(("-o", "nsdelegate") if wanted else ()), "none", str(point))
    unmount(point)


@pytest.fixture
def nsdelegate(kernel: None, tmp_path: Path) -> Iterator[None]:
    """Mount cgroup2 as systemd does. Only processes in their own cgroup namespaces notice this."""
    before = delegates()
    point = tmp_path / "cgroup2"
    point.mkdir()
    set_delegation(point, wanted=True)
    if not delegates():
        pytest.skip("this process is not in the first cgroup namespace, and can't set nsdelegate")
    yield
    set_delegation(point, wanted=before)


async def start(agent: Agent, api: Api) -> tuple[Path, Path]:
    """Start the agent in a pod, and wait until it is ready.

    Return the pod's cgroup and the container's cgroup.
    """
    pod = make_cgroup(agent, "own")
    container = pod / naming.container_name("systemd", ID)
    await bind(api, "own")
    statuses = [{"name": "c", "containerID": f"containerd://{ID}"}]
    await api.set("pods", "ns", "own", status={"containerStatuses": statuses})
    await agent.start(container=container)
    await agent.ready()
    await until(lambda: api.status.get("conditions"))
    return pod, container


def ready(api: Api) -> tuple[str, str]:
    (found,) = (each for each in api.status["conditions"] if each["type"] == "Ready")
    return found["status"], found["message"]


@pytest.mark.usefixtures("nsdelegate")
async def test_limits_its_own_pod_and_reports_its_own_container(agent: Agent, api: Api) -> None:
    pod, container = await start(agent, api)
    await until(lambda: limits(pod) == ("8", "8"))
    await until(lambda: str(container) in ready(api)[1])
    status, message = ready(api)
    assert status == "True"
    assert "nsdelegate" in message
    assert "The limit of its pod own holds." in message
    assert "8" not in limits(container)


@pytest.mark.usefixtures("nsdelegate")
def test_the_kernel_refuses_to_limit_the_root_of_the_own_namespace(cgroup_subtree: Path) -> None:
    """Because of this rule, the agent must treat its own container as the other tests check."""
    own = cgroup_subtree / "own"
    own.mkdir()
    write_limit(own, SMALL, "rsvd.max", 0)  # from outside
    program = (
        "from pathlib import Path\n"
        "from hugetlb_quota.node.cgroup import OwnNamespace, write_limit\n"
        "from hugetlb_quota.page_size import PageSize\n"
        f"try: write_limit(Path({str(own)!r}), PageSize(2 << 20), 'rsvd.max', 0)\n"
        "except OwnNamespace as error: print(error)\n"
    )
    script = f'echo $$ >{own}/cgroup.procs && exec unshare --cgroup "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "root of the agent's own cgroup namespace" in done.stdout, done.stderr
