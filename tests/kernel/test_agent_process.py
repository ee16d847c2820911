"""The agent as a process on real cgroups: killed, started again, and without its API server."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.agent_process import (
    ID,
    SECONDS,
    SOON,
    Agent,
    Api,
    bind,
    limits,
    make_cgroup,
    until,
)
from tests.testnode import cgroup_tree, naming
from tests.tracking import Actor
from tests.workloads import command


async def test_enforces_reports_and_ends_at_sigterm(agent: Agent, api: Api) -> None:
    await agent.start()
    await agent.ready()
    await bind(api, "aa-bb")
    await until(lambda: api.listed() == ["aa-bb"])
    pod = make_cgroup(agent, "aa-bb")
    await until(lambda: limits(pod) == ("8", "8"))
    statuses = [{"name": "c", "containerID": f"containerd://{ID}"}]
    await api.set("pods", "ns", "aa-bb", status={"containerStatuses": statuses})
    container = pod / naming.container_name("systemd", ID)
    await until(lambda: limits(container) == ("8", "8"))
    with Actor(container):
        await api.set("pods", "ns", "aa-bb", status={"phase": "Succeeded"})
        ended = api.version
        await until(lambda: int(api.status["podsResourceVersion"]) >= ended)
        assert api.listed() == ["aa-bb"]  # a process is in the pod's cgroup
    # Kubelet may leave the empty cgroup behind.
    await until(lambda: api.status["pods"] == [], SOON)
    assert pod.is_dir()
    assert await agent.probe("/healthz") == (200, "ok\n")
    assert await agent.end(signal.SIGTERM) == 0


async def test_limits_a_pod_to_its_demand_and_copies_kubelets_limit_for_an_unseen_pod(
    agent: Agent, api: Api
) -> None:
    await agent.start()
    await agent.ready()
    unseen, seen = make_cgroup(agent, "unseen"), make_cgroup(agent, "seen")
    await until(lambda: (limits(unseen), limits(seen)) == (("32", "32"), ("32", "32")))
    await bind(api, "seen", namespace="any")
    await until(lambda: limits(seen) == ("8", "8"), SOON)
    await until(lambda: api.listed() == ["seen"], SOON)
    assert limits(unseen) == ("32", "32")


async def test_corrects_everything_after_a_kill_and_a_restart(
    agent: Agent, api: Api, pages: Callable[[int], None]
) -> None:
    pages(4)
    await agent.start()
    await bind(api, "ending")
    await bind(api, "drifting")
    ending, drifting = make_cgroup(agent, "ending"), make_cgroup(agent, "drifting")
    await until(lambda: (limits(ending), limits(drifting)) == (("8", "8"), ("8", "8")))
    await until(lambda: api.listed() == ["drifting", "ending"])
    holder = subprocess.Popen(
        command("map_pages", "4Mi", "--hold"),
        stdout=subprocess.PIPE,
        preexec_fn=lambda: cgroup_tree.write(
            ending / naming.container_name("systemd", ID) / "cgroup.procs", "0"
        ),
    )
    assert holder.stdout
    holder.stdout.readline()

    await agent.end(signal.SIGKILL)
    # While no agent runs: a user deletes one pod by force, but its process stays. Another program
    # overwrites the limits of the second pod. A third pod comes.
    end = await api.delete("pods", "ns", "ending")
    for file in ("hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"):
        cgroup_tree.write(drifting / file, "max")
    await bind(api, "new")
    new = make_cgroup(agent, "new")

    await agent.start()
    await agent.ready()
    assert (limits(drifting), limits(new)) == (("8", "8"), ("8", "8"))
    await until(lambda: int(api.status["podsResourceVersion"]) >= end)
    assert sorted(api.listed()) == ["drifting", "ending", "new"]
    assert api.entry("ending")["charged"] == {"hugepages-2Mi": "4Mi"}
    assert api.entry("ending")["name"] == "ending"
    holder.kill()
    holder.communicate()
    cgroup_tree.remove(ending)
    await until(lambda: sorted(api.listed()) == ["drifting", "new"])


async def test_keeps_enforcing_without_the_api(agent: Agent, api: Api) -> None:
    await agent.start()
    await agent.ready()
    await bind(api, "governed")
    governed = make_cgroup(agent, "governed")
    await until(lambda: limits(governed) == ("8", "8"))

    await api.stop()
    cgroup_tree.write(governed / "hugetlb.2MB.rsvd.max", "max")
    await until(lambda: limits(governed) == ("8", "8"))
    # The API has not shown the pod yet: kubelet's limit holds, also at mmap.
    unseen = make_cgroup(agent, "unseen", kubelet=6)
    await until(lambda: limits(unseen) == ("6", "6"))

    await api.start()
    await bind(api, "unseen", demand="4Mi")
    await until(lambda: limits(unseen) == ("4", "4"))
    await until(lambda: api.listed() == ["governed", "unseen"])


async def test_starts_without_the_api_with_kubelets_limits(agent: Agent, api: Api) -> None:
    await api.stop()
    unseen = make_cgroup(agent, "unseen", kubelet=6)
    await agent.start()
    await until(lambda: limits(unseen) == ("6", "6"))
    status, missing = await agent.probe("/readyz")
    assert (status, "the pods of this node" in missing) == (503, True)
    assert (await agent.probe("/healthz"))[0] == 200
    await api.start()
    await agent.ready()
    assert await agent.end(signal.SIGTERM) == 0


async def test_publishes_an_event_for_new_refusals_only(
    agent: Agent, api: Api, pages: Callable[[int], None]
) -> None:
    def published() -> list[str]:
        return [each["regarding"]["name"] for each in api.published]

    pages(2)
    cgroups = {uid: make_cgroup(agent, uid) for uid in ("before", "now")}
    for uid in cgroups:
        await bind(api, uid)
    cgroup_tree.write(cgroups["before"] / "hugetlb.2MB.rsvd.max", "8388608")
    with (
        Actor(cgroups["before"] / naming.container_name("systemd", ID)) as before,
        Actor(cgroups["now"] / naming.container_name("systemd", ID)) as now,
    ):
        too_much = "map_pages(1 + (32 << 20) // PAGE, PRIVATE | ANONYMOUS | HUGETLB)"
        with pytest.raises(OSError, match="Cannot allocate memory"):
            before.do(too_much)
        await agent.start()
        await agent.ready()
        async with asyncio.timeout(SECONDS):
            while "now" not in published():
                # The agent ignores refusals before its first look.
                with pytest.raises(OSError, match="Cannot allocate memory"):
                    now.do(too_much)
                await asyncio.sleep(0.2)
    assert published() == ["now"]
    assert "more than its 8Mi of hugepages-2Mi" in api.published[0]["note"]


async def test_waits_on_a_host_without_cgroup2(api: Api, agent: Agent, tmp_path: Path) -> None:
    host = tmp_path / "host"
    for directory in ("proc/1", "proc/sys/kernel/random", "sys"):
        (host / directory).mkdir(parents=True)
    (host / "proc/1/mountinfo").write_text("")
    (host / "proc/sys/kernel/random/boot_id").write_text("boot\n")
    await agent.start(f"--host-root={host}")
    await agent.ready()
    (ready,) = api.status["conditions"]
    assert (ready["type"], ready["status"], ready["reason"]) == ("Ready", "False", "NoCgroup2")
    assert (await agent.probe("/healthz"))[0] == 200
    assert await agent.end(signal.SIGTERM) == 0
