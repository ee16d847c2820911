"""The scenes, in their order."""

from __future__ import annotations

import json
import os
from pathlib import Path

from demo.stage import MIB, Json, Stage, mapping, pod
from demo.story import Skipped, Story, expect

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
DB, WEB, OTHER = "acme-db", "acme-web", "elsewhere"
#: An ordinary user, because initdb refuses to run as root.
NOBODY = 65534


def play(story: Story, stage: Stage) -> None:
    """Play all scenes. The first unexpected result raises Unexpected."""
    try:
        _start(story, stage)
        _within(story, stage)
        _refused(story, stage)
        _mmap(story, stage)
        _postgres(story, stage)
        _retained(story, stage)
        _gone(story, stage)
    finally:
        stage.close()


def _start(story: Story, stage: Stage) -> None:
    with story.scene(
        "Control plane, nodes, operator and agents",
        "a real API server stores the quotas of a tenant and of two namespaces below.",
    ) as scene:
        stage.open()
        scene.figures["control plane ready, s"] = round(stage.plane.startup_seconds, 1)
        story.show(stage.apply(EXAMPLES / "tenant.yaml"))
        stage.plane.create_namespace(OTHER)
        stage.wait(
            lambda: list(stage.use().values()) == ["0", "0", "0"], "every quota has been counted"
        )
        story.show(stage.kubectl("get", "nodes").stdout)
        story.show(stage.tree())


def _within(story: Story, stage: Stage) -> None:
    with story.scene(
        "Pods within their quotas run",
        "two pods of 64Mi run; each is charged to its namespace's quota, and both to the tenant.",
    ) as scene:
        holding = mapping("64Mi", "--hold")
        stage.create_pod(pod(DB, "db-0", program=holding, request="64Mi", node="worker-1"))
        stage.create_pod(pod(WEB, "web-0", program=holding, request="64Mi", node="worker-2"))
        db = stage.running(DB, "db-0")
        stage.running(WEB, "web-0")
        expected = {"acme/tenant": "128Mi", f"{DB}/db": "64Mi", f"{WEB}/web": "64Mi"}
        stage.wait(lambda: stage.use() == expected, f"the use is {expected}")
        story.show(stage.kubectl("get", "htq", "-A").stdout)
        story.show(stage.tree())
        uid = db["metadata"]["uid"]
        reserved = str(64 * MIB)
        stage.wait(
            lambda: stage.limits("worker-1", uid)["hugetlb.2MB.rsvd.current"] == reserved,
            "the kernel has reserved 64Mi for db-0",
        )
        limits = stage.limits("worker-1", uid)
        story.say("The kernel's values for db-0's cgroup on worker-1:")
        story.show("\n".join(f"{file:<26}{value:>12}" for file, value in limits.items()))
        expect(limits["hugetlb.2MB.rsvd.max"] == reserved, "rsvd.max is not the pod's 64Mi")
        scene.figures |= {"use": stage.use(), "cgroup of db-0": limits}


def _refused(story: Story, stage: Stage) -> None:
    with story.scene(
        "A pod over a quota is refused, and the refusal names the quota",
        "66Mi more in acme-db are above its own quota; 100Mi more in acme-web are within its own"
        " quota and above the tenant's.",
    ) as scene:
        before = stage.use()
        own = stage.refused(pod(DB, "db-1", program=mapping("2Mi"), request="66Mi"))
        story.show(_wrapped(own))
        expect(f"HugeTLBQuota {DB}/db" in own, f"the refusal does not name {DB}/db")
        expect(
            "HugeTLBQuota acme/tenant" not in own, "the refusal names the tenant, which has room"
        )
        above = stage.refused(pod(WEB, "web-1", program=mapping("2Mi"), request="100Mi"))
        story.show(_wrapped(above))
        expect("HugeTLBQuota acme/tenant" in above, "the refusal does not name acme/tenant")
        expect(
            f"HugeTLBQuota {WEB}/web" not in above, f"the refusal names {WEB}/web, which has room"
        )
        expect(stage.use() == before, "a refused pod changed the use")
        scene.figures |= {"over its own": own, "over the tenant's": above}


def _mmap(story: Story, stage: Stage) -> None:
    with story.scene(
        "A limit fails mmap, and the program falls back",
        "a pod that requests 64Mi and maps 80Mi gets ENOMEM and continues with small pages; without"
        " the agent's limits the same program dies of SIGBUS.",
    ) as scene:
        over = mapping("80Mi", "--map-first")
        bare = stage.run_pod(pod(OTHER, "bare", program=over, request="64Mi", node=stage.BARE))
        story.say(
            f"On {stage.BARE}, without an agent: exit {bare['exitCode']}"
            f" (128 + signal {bare['exitCode'] - 128}; 7 is SIGBUS)."
        )
        expect(bare["exitCode"] == 128 + 7, f"exit {bare['exitCode']} is not 135: {bare}")
        stage.delete_pod(WEB, "web-0")
        held = stage.run_pod(pod(DB, "over", program=over, request="64Mi", node="worker-1"))
        expect(held["exitCode"] == 0, f"exit {held['exitCode']}: {held.get('message')}")
        measured: Json = json.loads(held["message"].strip().splitlines()[-1])
        story.say(
            f"On worker-1, with an agent: mmap failed with {measured['errno']}, the program mapped"
            f" {measured['huge'] // MIB}Mi in huge and {measured['fallback'] // MIB}Mi in small"
            " pages, and exited with 0."
        )
        expect(measured["errno"] == "ENOMEM", f"errno is {measured['errno']}")
        expect(measured["fallback"] > 0, "nothing fell back to small pages")
        expect(measured["huge"] <= 64 * MIB, "more than the pod's 64Mi came from huge pages")
        scene.figures |= {"without": {"exitCode": bare["exitCode"]}, "with": measured}


def _postgres(story: Story, stage: Stage) -> None:
    with story.scene(
        "PostgreSQL, unmodified",
        "initdb in a pod that requests no huge pages dies of a bus error without the agent, and"
        " succeeds with the agent.",
    ) as scene:
        installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not installed:
            raise Skipped("no PostgreSQL is installed below /usr/lib/postgresql.")
        initdb = [str(installed[-1]), "-D", "/tmp/pgdata", "--no-sync"]
        for name, node, good in (("pg-bare", stage.BARE, False), ("pg", "worker-1", True)):
            ended = stage.run_pod(pod(OTHER, name, program=initdb, node=node, user=NOBODY))
            output = ended.get("message") or ""
            story.say(f"On {node}: initdb exits with {ended['exitCode']}.")
            story.show("\n".join(output.strip().splitlines()[-4:]))
            version = installed[-1].parts[-3]
            scene.figures[node] = {"exitCode": ended["exitCode"], "PostgreSQL": version}
            if good:
                expect(ended["exitCode"] == 0, f"initdb failed on {node}: {output}")
            else:
                expect("Bus error" in output, f"initdb met no bus error on {node}: {output}")


def _retained(story: Story, stage: Stage) -> None:
    with story.scene(
        "A shared file stays charged until it is truncated",
        "a pod fills 64Mi of a shared file and ends, and the charge stays; the next pod is refused,"
        " and the refusal names the file; the file is truncated, and the pod is admitted.",
    ) as scene:
        huge = stage.mount_hugetlbfs()
        shared = huge / "rte_shared"
        fill = mapping("64Mi", "--file", f"/huge/{shared.name}")
        filler = pod(
            DB, "filler", program=fill, request="64Mi", node="worker-1", user=NOBODY, host_path=huge
        )
        ended = stage.run_pod(filler)
        expect(ended["exitCode"] == 0, f"the filler failed: {ended.get('message')}")
        stage.delete_pod(DB, "filler")
        stage.wait(
            lambda: stage.status(DB, "db").get("retained") == {"hugepages-2Mi": "64Mi"},
            "64Mi is retained in acme-db/db",
        )
        held = shared.stat().st_blocks * 512
        story.say(f"The pod is gone; {shared} still holds {held // MIB}Mi of huge pages:")
        story.show(stage.kubectl("get", "htq", "-A").stdout)
        expect(held == 64 * MIB, f"the file holds {held} bytes")
        after = pod(DB, "after", program=mapping("64Mi"), request="64Mi", node="worker-1")
        refused = stage.refused(after)
        story.show(_wrapped(refused))
        expect(str(shared) in refused, "the refusal does not name the file")
        expect("64Mi retained" in refused, "the refusal does not say how much is retained")
        os.truncate(shared, 0)
        seconds = stage.wait(
            lambda: not stage.status(DB, "db").get("retained"), "nothing is retained any more"
        )
        story.say(f"{seconds} s after `truncate --size 0 {shared}` nothing is retained.")
        admitted = stage.run_pod(after)
        expect(admitted["exitCode"] == 0, f"the next pod failed: {admitted.get('message')}")
        scene.figures |= {"refusal": refused, "charge gone after truncate, s": seconds}


def _gone(story: Story, stage: Stage) -> None:
    with story.scene(
        "Pods end, the use returns to zero, the quotas can be deleted",
        "a quota can't be deleted while a pod is charged to it, and can be deleted afterwards.",
    ) as scene:
        refused = stage.kubectl("delete", "htq", "-n", DB, "db", check=False)
        expect(refused.returncode != 0, f"{DB}/db was deleted while a pod is charged to it")
        story.show(_wrapped(refused.stderr.strip()))
        stage.delete_pod(DB, "db-0")
        seconds = stage.wait(lambda: set(stage.use().values()) == {"0"}, "the use is zero")
        story.say(f"{seconds} s after the request to delete the last pod, every use is zero:")
        story.show(stage.tree())
        deleted = stage.kubectl("delete", "htq", "-A", "--all", "--timeout=20s")
        story.show(deleted.stdout)
        expect(stage.use() == {}, "a quota still exists")
        scene.figures |= {"use back to zero, s": seconds, "refusal": refused.stderr.strip()}


def _wrapped(text: str) -> str:
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + len(word) < 92:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)
