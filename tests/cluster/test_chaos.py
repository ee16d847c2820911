"""Pods never exceed a limit while programs are killed and paused: see tests/chaos.

CHAOS_SECONDS and CHAOS_SEED (`make chaos SECONDS=600 SEED=1`) set the duration and the random
choices. Without them the run is short, and prints its seed.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests import seeds
from tests.chaos import load, nodes
from tests.chaos.client import connect
from tests.chaos.faults import Faults, plan, port_of
from tests.chaos.forwarder import Forwarder
from tests.chaos.observer import Ledger, Observer
from tests.kube import chart as charts
from tests.kube.cluster import Cluster
from tests.kube.control_plane import ControlPlane

SECONDS = float(os.environ.get("CHAOS_SECONDS") or 20)
REQUEST_TIMEOUT = 6
"""The longest time of an API request, with its webhooks, in seconds."""
LIFETIME = 2.0 * REQUEST_TIMEOUT
"""More than the life of a reservation, in seconds. One pause of each round is longer."""
QUIET_TIMEOUT = 150.0
"""In seconds. A new leader needs 20 s, and then watches each reservation for a whole life."""
CONNECTIONS = 50
"""The connections of the nodes and the scheduler."""
AT_REST = 2.0
"""In seconds. A request from before the quiet may arrive within this time."""
VALUES = {
    "requestTimeoutSeconds": REQUEST_TIMEOUT,
    # With Ignore, a change of labels while no replica answers may go beyond a limit.
    "admission": {"relabelFailurePolicy": "Fail"},
}
FLAGS = (
    f"--request-timeout={REQUEST_TIMEOUT}s",
    "--storage-media-type=application/json",
    "--etcd-compaction-interval=0",
)


@pytest.mark.timeout(SECONDS + 400)
async def test_pods_never_have_more_than_the_limit(assets: Path) -> None:
    seed = seeds.seed("CHAOS_SEED")
    print(f"CHAOS_SECONDS={SECONDS:g}")
    with (
        ControlPlane(assets, apiserver_flags=FLAGS) as plane,
        Cluster(control_plane=plane, values=VALUES) as cluster,
    ):
        await race(cluster, seed)


async def race(cluster: Cluster, seed: int) -> None:
    """Let users race while programs are killed; check everything during and after."""
    plane, programs = cluster.control_plane, cluster.programs
    replicas = [cluster.admission, *(programs.start_admission() for _ in range(2))]
    controllers = [cluster.controller, programs.start_controller()]
    forwarder = Forwarder([port_of(each) for each in replicas])
    observer = Observer(plane.etcd)
    ledger = observer.ledger
    async with forwarder.running(), connect(plane, CONNECTIONS, load.REQUEST_TIMEOUT) as client:
        for program in (*replicas, *controllers):
            await asyncio.to_thread(program.wait_ready)
        address = f"https://127.0.0.1:{forwarder.port}"
        await asyncio.to_thread(charts.register_webhooks, plane, cluster.chart, address)
        levels = await asyncio.to_thread(load.make_forest, plane)
        users = load.Load(plane, levels, ledger, seed)
        faults = Faults(plane, replicas, controllers, forwarder, lambda: ledger.leader, print)
        machines = nodes.Nodes(ledger, client, seed, print)
        watching = asyncio.create_task(observer.run())
        await asyncio.wait_for(machines.start(), 60)
        tasks = [
            watching,
            asyncio.create_task(faults.heal()),
            asyncio.create_task(machines.run()),
        ]
        racing = [asyncio.create_task(users.run()), asyncio.create_task(machines.schedule())]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(faults.run(plan(SECONDS, seed, LIFETIME)))
                group.create_task(machines.suffer(nodes.plan(SECONDS, seed)))
            machines.quiet()
            for task in racing:
                await stop(task)
            await faults.all_ready()
            print(f"quiet; {dict(users.outcomes)}; {dict(machines.seen)}")
            print(f"the last refusal: {users.examples.get(('create', 'refused'))}")
            await wait_until_counted(ledger)
            last = int(plane.api.raw("GET", "/api/v1/pods").json()["metadata"]["resourceVersion"])
            await asyncio.wait_for(observer.reach(last), 60)
            assert not watching.done()
        finally:
            for task in (*racing, *tasks):
                await stop(task)
    print(f"{ledger.checked} revisions checked; the most that pods took: {ledger.fullest}")
    assert not ledger.breaches, "\n".join(ledger.breaches)
    assert users.outcomes["create", "done"] >= 5
    assert users.outcomes["create", "refused"] >= 1
    assert machines.seen["ended"] >= 1
    assert faults.done


async def wait_until_counted(ledger: Ledger) -> None:
    """Wait until each counter equals a count from scratch, and no quota has a reservation.

    All this must stay so for AT_REST seconds.
    """
    since, deadline = time.monotonic(), time.monotonic() + QUIET_TIMEOUT
    while time.monotonic() < since + AT_REST:
        await asyncio.sleep(0.1)
        taken, left = ledger.taken(), ledger.left()
        wrong = {
            key: (quota, taken[key], left[key])
            for key, quota in ledger.quotas.items()
            if (quota.used, quota.retained) != (taken[key], left[key]) or quota.reservations
        }
        if wrong:
            since = time.monotonic()
            assert since < deadline, f"quiet for {QUIET_TIMEOUT:g} s, and still wrong: {wrong}"


async def stop(task: asyncio.Task[None]) -> None:
    """Cancel the task; raise the error that the task raised before."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
