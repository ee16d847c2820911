"""`helm upgrade` from the commit before and `helm rollback`, while tenants create pods.

The API server, the Deployment controller and the scheduler are real. A `ProcessKubelet` runs the
pods of the Deployments as processes. The pods of the commit before run the code of that commit. The
installed Service of admission leads to a forwarder on a loopback address.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from tests import previous
from tests.chaos import load
from tests.chaos.forwarder import Forwarder
from tests.chaos.observer import PAGES, Ledger, Observer
from tests.cluster.process_kubelet import ProcessKubelet
from tests.kube import chart as charts
from tests.kube.api import ApiError, Object
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Programs
from tests.kube.quotas import QUOTAS
from tests.waiting import eventually

STEP = 60
"""The least number of pods that are created under each release and in each namespace."""
CREATORS = 4
"""In each namespace."""
HELD = {"roomy": 10, "tight": 8}
"""The most pods that each creator keeps. The creators of `tight` want more than ROOM."""
ROOM = 8
TIMEOUT = 240.0
"""The timeout of each wait, in seconds."""
REQUEST_TIMEOUT = 30
"""In seconds. The test waits for the end of reservations, which live twice as long."""
FLAGS = (
    f"--request-timeout={REQUEST_TIMEOUT}s",
    # The observer reads each revision of each object from etcd.
    "--storage-media-type=application/json",
    "--etcd-compaction-interval=0",
)
VALUES = {
    "image.repository": charts.IMAGE["repository"],
    "requestTimeoutSeconds": str(REQUEST_TIMEOUT),
    # An answer that comes late on a busy machine is no failure of the upgrade.
    "admission.timeoutSeconds": "25",
    # No agent is needed, because no node reports these pods.
    "agent.nodeSelector.agents": "none",
}

RENDERED = {"requestTimeoutSeconds": REQUEST_TIMEOUT}
"""The values that change a program's command line."""


class Tenants:
    """Clients that create and delete pods all the time in the namespaces `roomy` and `tight`.

    `created` and `refused` count by namespace. `wrong` has every other answer to a create: in
    `roomy` all but 201, in `tight` all but 201 and a refusal that names the room.
    """

    def __init__(self, plane: ControlPlane) -> None:
        self._server, self._tls = plane.server, plane.admin_tls()
        self.created: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.wrong: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Create and delete inside the context; at its end, wait for the last requests."""
        end = asyncio.Event()
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._tls)
        ) as session:
            tasks = [
                asyncio.create_task(self._use(session, namespace, number, end))
                for namespace in HELD
                for number in range(CREATORS)
            ]
            try:
                yield
            finally:
                end.set()
                await asyncio.gather(*tasks)

    async def wait_for_more(self) -> None:
        """Wait until STEP more pods were created in each namespace, or an answer was wrong."""
        until = {namespace: self.created[namespace] + STEP for namespace in HELD}
        async with asyncio.timeout(TIMEOUT):
            while not self.wrong and any(self.created[each] < until[each] for each in until):
                await asyncio.sleep(0.05)

    async def _use(
        self, session: aiohttp.ClientSession, namespace: str, who: int, end: asyncio.Event
    ) -> None:
        path = f"{self._server}/api/v1/namespaces/{namespace}/pods"
        mine: deque[str] = deque()
        number = 0
        while not end.is_set():
            number += 1
            body = load.pod(f"c{who}-{number}", "x", 2)
            async with session.post(path, json=body) as answer:
                text = await answer.text()
            if answer.status == 201:
                self.created[namespace] += 1
                mine.append(body["metadata"]["name"])
            elif namespace == "tight" and answer.status == 403 and " room" in text:
                self.refused[namespace] += 1
            else:
                self.wrong.append(f"{namespace}: {answer.status}: {text}")
            if len(mine) == HELD[namespace] or (mine and answer.status != 201):
                async with session.delete(f"{path}/{mine.popleft()}") as gone:
                    await gone.read()
            await asyncio.sleep(0.01)


class Release:
    """The release; the administrator runs helm and kubectl."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    def helm(self, verb: str, *words: str, **values: str) -> None:
        """Run `helm VERB` on the release, with the values."""
        chosen = [f"--set={name}={value}" for name, value in values.items()]
        self._plane.helm(verb, charts.RELEASE, *words, f"--namespace={charts.NAMESPACE}", *chosen)

    def wait_rolled_out(self) -> None:
        """Wait until both Deployments have replaced all their pods."""
        for name in ("admission", "controller"):
            self._plane.kubectl(
                *("rollout", "status", f"deployment/{charts.RELEASE}-{name}"),
                *("-n", charts.NAMESPACE, f"--timeout={TIMEOUT:.0f}s"),
                timeout=TIMEOUT + 10,
            )

    def lead_service_to(self, address: str) -> None:
        """Let admission's Service lead to an address of this host; no kube-proxy runs."""
        spec = {"type": "ExternalName", "externalName": address}
        name = f"{charts.RELEASE}-admission"
        self._plane.api.patch("v1/services", name, {"spec": spec}, namespace=charts.NAMESPACE)


def make_quotas(plane: ControlPlane) -> None:
    """Make a quota of each namespace, below a quota that has room for all."""
    for namespace in ("above", *HELD):
        plane.create_namespace(namespace)
    for namespace, parent, hard in (
        ("above", None, "1000Gi"),
        ("roomy", ("above", "all"), "1000Gi"),
        ("tight", ("above", "all"), f"{2 * ROOM}Mi"),
    ):
        labels = {"none": "at-all"} if parent is None else {}
        quota = load.quota((namespace, "all"), 1, parent, labels)
        quota["spec"]["hard"] = {PAGES: hard}
        make_quota(plane, quota)


def make_quota(plane: ControlPlane, quota: Object) -> None:
    """Create a quota as soon as admission answers, and wait until the quota holds."""

    def made() -> bool:
        try:
            plane.api.create(QUOTAS, quota)
        except ApiError as error:
            return error.code == 409
        return True

    def is_counted() -> bool:
        found = plane.api.get(QUOTAS, "all", namespace=quota["metadata"]["namespace"])
        return "observedGeneration" in (found.get("status") or {})

    eventually(made, timeout=TIMEOUT)
    eventually(is_counted, timeout=TIMEOUT)


async def wait_until_counted(ledger: Ledger) -> None:
    """Wait until each quota counts exactly the pages of its pods, and reserves nothing."""

    def wrong() -> list[object]:
        taken = ledger.taken()
        return [
            (key, quota, taken[key])
            for key, quota in ledger.quotas.items()
            if quota.used != taken[key] or quota.reservations
        ]

    with suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT):
            while wrong():
                await asyncio.sleep(0.1)
    assert ledger.quotas
    assert not wrong()


@pytest.mark.timeout(1500)
async def test_no_create_fails_and_no_quota_overflows_in_an_upgrade_and_a_rollback(
    assets: Path, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("the test listens on port 443 of a loopback address, as root")
    commit = previous.commit()
    if commit is None:
        pytest.skip("the repository has no commit before this commit")
    tree = previous.unpack(commit, tmp_path)
    chart = {"before": tree / "charts" / "hugetlb-quota", "now": charts.CHART}
    source = {"before": tree / "operator", "now": None}
    with ControlPlane(assets, apiserver_flags=FLAGS) as plane:
        releases = {
            tag: Programs(
                plane,
                charts.render(assets / "helm", chart=chart[tag], values=RENDERED),
                source=source[tag],
            )
            for tag in chart
        }
        try:
            await upgrade_and_roll_back(plane, chart, releases)
        finally:
            # The test is over; a stop would wait until the last replicas have drained.
            for programs in releases.values():
                for program in programs.running:
                    program.kill9()


async def upgrade_and_roll_back(
    plane: ControlPlane, chart: dict[str, Path], releases: dict[str, Programs]
) -> None:
    """Install `before`, upgrade to `now` and roll back while tenants create pods."""
    # Up to two replicas of each program start and four end at the same time, each in a thread.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(16))
    release, tenants, observer = Release(plane), Tenants(plane), Observer(plane.etcd)
    # The port of the Service: the webhook configuration names this port.
    address = "127.{}.{}.{}".format(*(random.randrange(1, 255) for _ in range(3)))
    forwarder = Forwarder([], address, 443)
    kubelet = ProcessKubelet(plane, releases, forwarder)
    watching = asyncio.create_task(observer.run())
    try:
        async with forwarder.running(), kubelet.running():
            await asyncio.to_thread(
                release.helm,
                "install",
                str(chart["before"]),
                "--create-namespace",
                **VALUES,
                **{"image.tag": "before"},
            )
            await asyncio.to_thread(release.lead_service_to, address)
            await asyncio.to_thread(release.wait_rolled_out)
            await asyncio.to_thread(make_quotas, plane)
            async with tenants.running():
                await tenants.wait_for_more()
                await asyncio.to_thread(
                    release.helm, "upgrade", str(chart["now"]), **VALUES, **{"image.tag": "now"}
                )
                await asyncio.to_thread(release.wait_rolled_out)
                await wait_for_the_old(kubelet, "now")
                await tenants.wait_for_more()
                await asyncio.to_thread(release.helm, "rollback")
                await asyncio.to_thread(release.wait_rolled_out)
                await wait_for_the_old(kubelet, "before")
                await tenants.wait_for_more()
            last = plane.api.raw("GET", "/api/v1/pods").json()["metadata"]["resourceVersion"]
            reached = asyncio.create_task(observer.reach(int(last)))
            await asyncio.wait({watching, reached}, return_when=asyncio.FIRST_COMPLETED)
            await wait_until_counted(observer.ledger)
            if watching.done():
                watching.result()
    finally:
        watching.cancel()
    check(tenants, kubelet, observer.ledger)


async def wait_for_the_old(kubelet: ProcessKubelet, tag: str) -> None:
    """Wait until all pods are of the release `tag`; ending pods still serve until then."""

    def images() -> set[str]:
        return {pod["spec"]["containers"][0]["image"].rpartition(":")[2] for pod in kubelet.pods()}

    async with asyncio.timeout(TIMEOUT):
        while await asyncio.to_thread(images) != {tag}:
            await asyncio.sleep(0.2)


def check(tenants: Tenants, kubelet: ProcessKubelet, ledger: Ledger) -> None:
    """Check all observations."""
    print(f"{tenants.created} created, {tenants.refused} refused, {ledger.checked} revisions;")
    print(f"the most that pods took: {ledger.fullest}")
    assert not tenants.wrong, "\n".join(tenants.wrong[:3])
    assert not ledger.breaches, "\n".join(ledger.breaches)
    assert tenants.refused["tight"]
    # The Deployment replaces one replica at a time: at most three exist, at least two are Ready.
    for component in ("admission", "controller"):
        assert kubelet.fewest[component] >= 2
        assert kubelet.most[component] == 3
    # All replicas of both Deployments were replaced twice, and admission always ended by itself.
    assert len(kubelet.ended) == 8
    statuses = {status for pod, status in kubelet.ended.items() if "-admission-" in pod}
    assert statuses == {0}
