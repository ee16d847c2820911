"""Pods of the test node on the real kernel: the effect of kubelet's limits on real processes."""

from __future__ import annotations

import asyncio
import json
import shlex
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.testnode import cgroup_tree, volumes
from tests.testnode.hugepages import page_sizes
from tests.testnode.naming import DRIVERS, Driver, kernel_size
from tests.testnode.pod import Place, PodRun
from tests.workloads import command

Json = dict[str, Any]
MIB = 1 << 20
PAGE = 2 * MIB
SIGBUS_EXIT = 128 + 7
SECONDS = 60.0


@pytest.fixture(params=DRIVERS)
def place(request: pytest.FixtureRequest, cgroup_subtree: Path, tmp_path: Path) -> Place:
    driver: Driver = request.param
    place = Place(cgroup_tree.cgroup2_mount(), cgroup_subtree, tmp_path, driver)
    place.make()
    return place


def make_pod(*containers: Json, huge: str | None = None, **spec: Any) -> Json:
    """Return a pod as the API server has it; ``huge`` is each container's request of 2Mi pages."""
    resources = {"hugepages-2Mi": huge, "memory": "64Mi"} if huge else {}
    for number, container in enumerate(containers):
        container.setdefault("name", f"c{number}")
        container.setdefault("resources", {"requests": resources, "limits": resources})
    return {
        "metadata": {"name": "a", "namespace": "default", "uid": str(uuid.uuid4())},
        "spec": {"restartPolicy": "Never", "containers": list(containers), **spec},
        "status": {"qosClass": "Burstable" if huge else "BestEffort"},
    }


class Watched:
    """A running pod, with every status that it reported."""

    def __init__(self, pod: Json, place: Place) -> None:
        self.reports: list[Json] = []
        self.run = PodRun(pod, place, self._take)
        self._task: asyncio.Task[None] | None = None

    async def _take(self, status: Json) -> None:
        self.reports.append(json.loads(json.dumps(status)))

    async def __aenter__(self) -> Watched:
        self._task = asyncio.create_task(self.run.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def until(self, done: Callable[[Json], bool]) -> Json:
        async with asyncio.timeout(SECONDS):
            while not (self.reports and done(self.reports[-1])):
                assert self._task
                assert not self._task.done() or self.reports, self._task
                await asyncio.sleep(0.02)
        return self.reports[-1]

    async def printed(self, text: str) -> None:
        """Wait until the first container has written ``text``."""
        await self.until(running)
        async with asyncio.timeout(SECONDS):
            while text not in self.run._live["c0"].message():
                await asyncio.sleep(0.02)

    async def over(self) -> Json:
        """Wait until the pod is gone from the host; return its last status."""
        assert self._task
        await asyncio.wait_for(self._task, SECONDS)
        return self.reports[-1]


async def run_to_end(pod: Json, place: Place) -> Json:
    async with Watched(pod, place) as watched:
        return await watched.over()


def ended(status: Json, container: int = 0) -> Json:
    terminated: Json = status["containerStatuses"][container]["state"]["terminated"]
    return terminated


def measured(status: Json) -> Json:
    """Return the JSON that the workload printed, from the pod's status as the demo reads it."""
    answer: Json = json.loads(ended(status)["message"].splitlines()[-1])
    return answer


def unlimited(limit: Path) -> bool:
    """True if no program wrote the limit.

    Linux shows "max" only if the largest value is a multiple of the page size.
    """
    return limit.read_text().strip() in ("max", str((1 << 63) - 4096))


def running(status: Json) -> bool:
    return bool(status["phase"] == "Running")


async def test_container_runs_in_its_cgroup_with_kubelets_limits(
    place: Place, pages: Callable[[int], None]
) -> None:
    pages(2)
    pod = make_pod({"command": command("map_pages", "4Mi", "--hold")}, huge="4Mi")
    async with Watched(pod, place) as watched:
        status = await watched.until(running)
        container = status["containerStatuses"][0]
        container_id = container["containerID"].removeprefix("containerd://")
        cgroup = watched.run.cgroup
        own = cgroup / (
            f"cri-containerd-{container_id}.scope" if place.driver == "systemd" else container_id
        )
        assert (own / "cgroup.procs").read_text().split()
        assert (cgroup / "hugetlb.2MB.max").read_text() == f"{4 * MIB}\n"
        for size in set(page_sizes()) - {PAGE}:
            assert (cgroup / f"hugetlb.{kernel_size(size)}.max").read_text() == "0\n"
        # kubelet writes 1 << 62 for no limit (qos_container_manager_linux.go).
        assert (cgroup.parent / "hugetlb.2MB.max").read_text() == f"{1 << 62}\n"
        # A kubelet before 1.29 writes no rsvd.max of the pod, and no limit of the container.
        assert unlimited(cgroup / "hugetlb.2MB.rsvd.max")
        assert unlimited(own / "hugetlb.2MB.max")
        assert unlimited(own / "hugetlb.2MB.rsvd.max")
        assert status["podIP"] == "127.0.0.1"
        assert {c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(
            ("PodScheduled", "Initialized", "ContainersReady", "Ready"), "True"
        )
        await watched.printed("resident")
        watched.run.terminate(10)
        status = await watched.over()
    assert status["phase"] == "Succeeded"
    assert measured(status) == {
        "requested": 4 * MIB, "huge": 4 * MIB, "fallback": 0, "errno": None, "resident": 4 * MIB,
    }  # fmt: skip
    assert not cgroup.exists()


async def test_mapping_more_than_the_limit_dies_of_sigbus(
    place: Place, pages: Callable[[int], None]
) -> None:
    pages(8)
    status = await run_to_end(
        make_pod({"command": command("map_pages", "16Mi", "--map-first")}, huge="8Mi"), place
    )
    assert status["phase"] == "Failed"
    assert ended(status)["exitCode"] == SIGBUS_EXIT
    assert ended(status)["signal"] == 7
    assert "mapped 16777216 bytes in huge pages" in ended(status)["message"]


async def test_with_a_reservation_limit_mmap_refuses_and_the_program_falls_back(
    place: Place, pages: Callable[[int], None]
) -> None:
    pages(8)
    # The program waits for the limit: on a node, the agent sets the limit before the program runs.
    start = command("map_pages", "16Mi")
    wait = f"while ! grep -qx {8 * MIB} $LIMIT; do sleep 0.02; done; exec {shlex.join(start)}"
    pod = make_pod({"command": ["sh", "-c", wait]}, huge="8Mi")
    limit = place.pod_cgroup(pod) / "hugetlb.2MB.rsvd.max"
    pod["spec"]["containers"][0]["env"] = [{"name": "LIMIT", "value": str(limit)}]
    async with Watched(pod, place) as watched:
        await watched.until(running)
        cgroup_tree.write(limit, str(8 * MIB))
        status = await watched.over()
    assert status["phase"] == "Succeeded"
    assert measured(status) == {
        "requested": 16 * MIB, "huge": 8 * MIB, "fallback": 8 * MIB, "errno": "ENOMEM",
        "resident": 8 * MIB,
    }  # fmt: skip


async def test_a_newer_kubelet_writes_both_limits(
    cgroup_subtree: Path, tmp_path: Path, pages: Callable[[int], None]
) -> None:
    pages(4)
    place = Place(cgroup_tree.cgroup2_mount(), cgroup_subtree, tmp_path, "systemd", rsvd=True)
    place.make()
    pod = make_pod({"command": command("map_pages", "8Mi", "--map-first")}, huge="4Mi")
    status = await run_to_end(pod, place)
    assert measured(status)["errno"] == "ENOMEM"
    assert measured(status)["fallback"] == 8 * MIB


async def test_huge_pages_empty_dir_is_usable_and_gone_after(
    place: Place, pages: Callable[[int], None]
) -> None:
    pages(2)
    pod = make_pod(
        {
            "command": command("map_pages", "4Mi", "--file", "/huge/a", "--hold"),
            "securityContext": {"runAsUser": 65534, "runAsGroup": 65534},
            "volumeMounts": [{"name": "huge", "mountPath": "/huge"}],
        },
        huge="4Mi",
        volumes=[{"name": "huge", "emptyDir": {"medium": "HugePages"}}],
    )
    async with Watched(pod, place) as watched:
        await watched.until(running)
        path = place.pod_dir(pod) / "volumes/kubernetes.io~empty-dir/huge"
        assert volumes.mounts_below(path) == [path]
        assert path.stat().st_mode & 0o777 == 0o777
        await watched.printed("resident")
        assert (watched.run.cgroup / "hugetlb.2MB.current").read_text() == f"{4 * MIB}\n"
        watched.run.terminate(10)
        status = await watched.over()
    assert measured(status)["huge"] == 4 * MIB
    assert volumes.mounts_below(place.state_dir) == []
    assert not place.pod_dir(pod).exists()
    async with asyncio.timeout(SECONDS):
        # The last reference to the file system ends with the container's mount namespace.
        while (place.pods_cgroup() / "hugetlb.2MB.rsvd.current").read_text() != "0\n":
            await asyncio.sleep(0.02)


async def test_requires_the_page_size_of_an_empty_dir(place: Place) -> None:
    pod = make_pod(
        {"command": ["true"]},
        volumes=[{"name": "huge", "emptyDir": {"medium": "HugePages"}}],
    )
    async with Watched(pod, place) as watched:
        status = await watched.until(lambda status: bool(status["containerStatuses"]))
        assert status["phase"] == "Pending"
        waiting = status["containerStatuses"][0]["state"]["waiting"]
        assert waiting["reason"] == "CreateContainerConfigError"
        assert "this pod requests none; write HugePages-<size>" in waiting["message"]
        watched.run.terminate(0)
        await watched.over()


async def test_a_container_sees_its_volumes_and_hides_its_root(
    place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shared = tmp_path_factory.mktemp("host")
    script = (
        "echo private > /root-of-container; echo seen > /host/file; echo empty > /plain/file;"
        " touch /memory/file 2>/dev/null || echo read-only;"
        " grep -c ' /memory tmpfs ' /proc/self/mounts; id -u; pwd"
    )
    pod = make_pod(
        {
            "command": ["sh", "-c"],
            "args": [f"{script}; echo $(WHO)"],
            "env": [
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "WHO", "value": "pod-$(NAME)"},
            ],
            "workingDir": "/made/for/it",
            "volumeMounts": [
                {"name": "host", "mountPath": "/host"},
                {"name": "plain", "mountPath": "/plain"},
                {"name": "memory", "mountPath": "/memory", "readOnly": True},
            ],
        },
        volumes=[
            {"name": "host", "hostPath": {"path": str(shared)}},
            {"name": "plain", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ],
    )
    status = await run_to_end(pod, place)
    assert ended(status)["message"].split("\n")[:-1] == [
        "read-only", "1", "0", "/made/for/it", "pod-a",
    ]  # fmt: skip
    assert (shared / "file").read_text() == "seen\n"
    assert not Path("/root-of-container").exists()
    assert not Path("/made").exists()


async def test_a_container_does_not_hold_another_pods_mounts(
    place: Place, pages: Callable[[int], None]
) -> None:
    pages(1)
    first = make_pod(
        {
            "command": command("map_pages", "2Mi", "--file", "/huge/a", "--hold"),
            "volumeMounts": [{"name": "huge", "mountPath": "/huge"}],
        },
        huge="2Mi",
        volumes=[{"name": "huge", "emptyDir": {"medium": "HugePages-2Mi"}}],
    )
    second = make_pod({"command": ["sh", "-c", "cat /proc/self/mounts; echo all; sleep 60"]})
    async with Watched(first, place) as one:
        await one.printed("resident")
        async with Watched(second, place) as other:
            await other.printed("all")
            assert first["metadata"]["uid"] not in other.run._live["c0"].message()
            assert (place.pods_cgroup() / "hugetlb.2MB.current").read_text() == f"{PAGE}\n"
            one.run.terminate(10)
            await one.over()
            async with asyncio.timeout(SECONDS):
                while (place.pods_cgroup() / "hugetlb.2MB.current").read_text() != "0\n":
                    await asyncio.sleep(0.02)


@pytest.mark.parametrize("privileged", [False, True])
async def test_a_container_has_containerds_default_capabilities_at_most(
    place: Place, privileged: bool
) -> None:
    def capabilities(text: str) -> int:
        line = next(line for line in text.splitlines() if line.startswith("CapBnd"))
        return int(line.split()[1], 16)

    mine = capabilities(Path("/proc/self/status").read_text())
    container = {
        "command": ["cat", "/proc/self/status"],
        "securityContext": {"privileged": privileged},
    }
    status = await run_to_end(make_pod(container), place)
    # "docker run" shows the same set.
    assert capabilities(ended(status)["message"]) == (mine if privileged else mine & 0xA80425FB)


async def test_fs_group_owns_volumes_and_is_a_group_of_the_process(place: Place) -> None:
    container = {
        "command": ["sh", "-c", "touch /data/file; stat -c %g /data/file; id -G; id -u"],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    pod = make_pod(
        container,
        securityContext={"runAsUser": 65534, "runAsGroup": 65534, "fsGroup": 4242},
        volumes=[{"name": "data", "emptyDir": {}}],
    )
    status = await run_to_end(pod, place)
    assert ended(status)["message"].split("\n")[:-1] == ["4242", "65534 4242", "65534"]


async def test_restart_policy_always_goes_on_until_the_pod_is_deleted(place: Place) -> None:
    async with Watched(make_pod({"command": ["true"]}, restartPolicy="Always"), place) as watched:
        status = await watched.until(
            # Wait until the container does not run. Otherwise the pod would be killed and Failed.
            lambda status: (
                (one := status["containerStatuses"][0])["restartCount"] == 2
                and "waiting" in one["state"]
            )
        )
        assert status["phase"] == "Running"
        watched.run.terminate(0)
        status = await watched.over()
    assert status["phase"] == "Succeeded"
    reasons = {
        one["containerStatuses"][0]["state"].get("waiting", {}).get("reason")
        for one in watched.reports
    }
    assert "CrashLoopBackOff" in reasons


async def test_ipc_namespace_ends_with_the_pod(place: Place) -> None:
    mine = Path("/proc/self/ns/ipc").readlink()
    pod = make_pod(
        {"command": ["readlink", "/proc/self/ns/ipc"]},
        {"command": ["readlink", "/proc/self/ns/ipc"]},
    )
    status = await run_to_end(pod, place)
    first, second = (ended(status, number)["message"] for number in (0, 1))
    assert first == second != f"{mine}\n"


async def test_init_containers_run_in_order_and_sidecars_stay(place: Place) -> None:
    shared = {"name": "shared", "mountPath": "/shared"}
    log = "echo {} >> /shared/log"

    def writes(name: str, script: str, **more: Any) -> Json:
        return {
            "name": name, "command": ["sh", "-c", script], "volumeMounts": [shared], **more,
        }  # fmt: skip

    sidecar = "while ! grep -q sidecar /shared/log; do sleep 0.05; done"
    stay = "trap 'echo sidecar-ended >> /shared/log; exit 0' TERM; echo sidecar >> /shared/log;"
    pod = make_pod(
        writes("main", f"sleep 0.2; {log.format('main')}"),
        initContainers=[
            writes("one", f"sleep 0.2; {log.format('one')}"),
            writes("side", f"{stay} while :; do sleep 0.05; done", restartPolicy="Always"),
            # This container waits for the sidecar, so the sidecar must have started before.
            writes("two", f"{sidecar}; {log.format('two')}"),
        ],
        volumes=[{"name": "shared", "hostPath": {"path": str(place.state_dir / "shared")}}],
    )
    status = await run_to_end(pod, place)
    lines = (place.state_dir / "shared/log").read_text().split()
    assert lines == ["one", "sidecar", "two", "main", "sidecar-ended"]
    assert status["phase"] == "Succeeded"
    assert [one["name"] for one in status["initContainerStatuses"]] == ["one", "side", "two"]


async def test_a_failing_init_container_fails_the_pod(place: Place) -> None:
    status = await run_to_end(
        make_pod({"command": ["true"]}, initContainers=[{"name": "i", "command": ["false"]}]),
        place,
    )
    assert status["phase"] == "Failed"
    assert status["containerStatuses"][0]["state"]["waiting"]["reason"] == "PodInitializing"


async def test_restart_policy_on_failure_tries_again_with_a_new_container(place: Place) -> None:
    seen = place.state_dir / "seen"
    pod = make_pod(
        {
            "command": ["sh", "-c", "test -e /seen/once && exit 0; touch /seen/once; exit 3"],
            "volumeMounts": [{"name": "seen", "mountPath": "/seen"}],
        },
        restartPolicy="OnFailure",
        volumes=[{"name": "seen", "hostPath": {"path": str(seen)}}],
    )
    async with Watched(pod, place) as watched:
        status = await watched.over()
        assert all(one["phase"] != "Failed" for one in watched.reports)
    container = status["containerStatuses"][0]
    assert status["phase"] == "Succeeded"
    assert container["restartCount"] == 1
    assert container["lastState"]["terminated"]["exitCode"] == 3


async def test_kills_processes_that_a_container_leaves(place: Place) -> None:
    pod = make_pod({"command": ["sh", "-c", "sleep 300 & echo $!"]}, {"command": ["sleep", "300"]})
    async with Watched(pod, place) as watched:
        # The other container keeps the pod running. It may start after the first has ended.
        status = await watched.until(
            lambda status: (
                [next(iter(each["state"])) for each in status["containerStatuses"]]
                == ["terminated", "running"]
            )
        )
        left = Path(f"/proc/{ended(status)['message'].strip()}/stat")
        # A zombie is dead too. The host's init removes it later.
        assert not left.exists() or left.read_text().rpartition(")")[2].split()[0] == "Z"
        assert cgroup_tree.populated(watched.run.cgroup)


async def test_a_pod_that_ignores_sigterm_is_killed_after_its_grace(place: Place) -> None:
    pod = make_pod({"command": ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"]})
    async with Watched(pod, place) as watched:
        await watched.printed("up")
        watched.run.terminate(0.5)
        status = await watched.over()
    assert ended(status)["exitCode"] == 128 + 9
    assert status["phase"] == "Failed"


async def test_reports_a_missing_command_as_a_start_error(place: Place) -> None:
    status = await run_to_end(make_pod({"command": ["/no/such/program"]}), place)
    assert ended(status)["reason"] == "StartError"
    assert ended(status)["exitCode"] == 128
    assert "/no/such/program" in ended(status)["message"]


async def test_limits_can_be_written_again(place: Place) -> None:
    pod = make_pod({"command": ["sleep", "60"]}, huge="4Mi")
    async with Watched(pod, place) as watched:
        await watched.until(running)
        resources = watched.run.pod["spec"]["containers"][0]["resources"]
        resources["requests"] = resources["limits"] = {"hugepages-2Mi": "8Mi"}
        watched.run.write_limits()
        assert (watched.run.cgroup / "hugetlb.2MB.max").read_text() == f"{8 * MIB}\n"
