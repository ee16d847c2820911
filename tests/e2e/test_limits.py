"""The kernel's limits of each pod and container, with a real kubelet and container runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.host import Group, Host
from tests.e2e.kubectl import CommandFailed, Json, apply, delete, get, kubectl, wait
from tests.e2e.pods import (
    container,
    hugetlb_volume,
    mount,
    pod,
    quota,
    wait_counted,
    wait_log,
    wait_phase,
    wait_used,
)

Seen = Callable[[str], None]
MIB = 1 << 20
REFUSED = "Cannot allocate memory"


def both(mib: int) -> tuple[str, str]:
    """The values of max and rsvd.max."""
    return str(mib * MIB), str(mib * MIB)


def wait_limits(host: Host, uid: str, mib: int, containers: int = 1) -> list[Group]:
    """Wait until the pod's cgroup and at least `containers` cgroups below have this limit."""

    def limited() -> list[Group] | None:
        groups = host.groups(uid)
        if not groups:
            return None
        top, *below = groups
        held = [group for group in below if group.limits() == both(mib)]
        return [top, *held] if top.limits() == both(mib) and len(held) >= containers else None

    groups: list[Group] = wait(f"pod {uid} and {containers} containers held to {mib} MiB", limited)
    return groups


def uid_of(namespace: str, name: str) -> str:
    return str(get("pod", name, namespace)["metadata"]["uid"])


def test_each_qos_class(installed: Host, namespace: str, seen: Seen) -> None:
    apply(quota(namespace, "q", "64Mi"))
    wait_counted(namespace, "q")
    # The CPU limit also slows the start, which takes long on an emulated processor.
    equal = {"cpu": "500m", "memory": "32Mi", "hugepages-2Mi": "16Mi"}
    guaranteed = container("map", "24")
    guaranteed["resources"] = {"requests": equal, "limits": equal}
    apply(
        pod(namespace, "guaranteed", guaranteed),
        pod(namespace, "burstable", container("map", "24", pages="16Mi")),
        pod(namespace, "besteffort", container("map", "8")),
    )
    for name, maps, mib in (("guaranteed", 24, 16), ("burstable", 24, 16), ("besteffort", 8, 0)):
        found = wait_phase(namespace, name)
        assert found["status"]["qosClass"].lower() == name
        assert f"mmap {maps} MiB: {REFUSED}" in wait_log(namespace, name, "mmap")
        groups = wait_limits(installed, found["metadata"]["uid"], mib)
        assert (name in groups[0].path) == (name != "guaranteed")
    seen(f"16, 16 and 0 MiB at pod and container level; beyond: {REFUSED}")


def test_a_static_pod(installed: Host, namespace: str, seen: Seen) -> None:
    apply(quota(namespace, "q", "16Mi"))
    wait_counted(namespace, "q")
    manifest = pod(namespace, "static", container("map", "8", pages="4Mi"))
    path = "/etc/kubernetes/manifests/e2e-static.json"
    text = json.dumps(manifest)
    installed.run(f"mkdir -p /etc/kubernetes/manifests; cat > {path} <<'EOF'\n{text}\nEOF")
    try:
        mirror = f"static-{installed.node}"
        wait_phase(namespace, mirror)
        assert f"mmap 8 MiB: {REFUSED}" in wait_log(namespace, mirror, "mmap")
        annotations = get("pod", mirror, namespace)["metadata"]["annotations"]
        wait_limits(installed, annotations["kubernetes.io/config.hash"], 4)
    finally:
        installed.run(f"rm -f {path}")
    seen(f"4 MiB at pod and container level; 8 MiB: {REFUSED}")


def test_init_containers_sidecars_and_a_restart(
    installed: Host, namespace: str, seen: Seen
) -> None:
    apply(quota(namespace, "q", "64Mi"))
    wait_counted(namespace, "q")
    init = container("map", "-x", "20", name="init", pages="16Mi")
    sidecar = container("map", "4", name="sidecar", pages="4Mi", restartPolicy="Always")
    # The first run of the main container ends; the second run stays.
    script = "[ -e /state/been ] && exec map 24; touch /state/been; map -x 24; exit 1"
    main = container("sh", "-c", script, pages="8Mi", volumeMounts=[mount("/state", "state")])
    volumes = [{"name": "state", "emptyDir": {}}]
    apply(pod(namespace, "p", main, initContainers=[init, sidecar], volumes=volumes))

    def restarted() -> Json | None:
        status = get("pod", "p", namespace)["status"]
        (found,) = status.get("containerStatuses", [{"restartCount": 0}])
        return found if found["restartCount"] and found.get("started") else None

    wait("the main container to be started again", restarted)
    # The pod's demand is the request of the init container: more than the sum of the others.
    wait_used(namespace, "q", "16Mi")
    uid = uid_of(namespace, "p")
    wait_limits(installed, uid, 16, containers=0)

    def each_its_own() -> bool:
        return {both(4), both(8)} <= {group.limits() for group in installed.groups(uid)[1:]}

    wait("sidecar and main container to be held to their own 4 and 8 MiB", each_its_own)
    assert f"mmap 20 MiB: {REFUSED}" in wait_log(namespace, "p", "mmap", container="init")
    assert "touched 4 MiB" in wait_log(namespace, "p", "touched", container="sidecar")
    assert f"mmap 24 MiB: {REFUSED}" in wait_log(namespace, "p", "mmap")
    seen("16 MiB for the pod, 4 for the sidecar, 8 for a restarted container; beyond: ENOMEM")


def test_pages_of_1_gib(installed: Host, namespace: str, seen: Seen) -> None:
    if get("node", installed.node)["status"]["allocatable"].get("hugepages-1Gi", "0") == "0":
        pytest.skip("the node has no huge pages of 1 GiB")
    size = "hugepages-1Gi"
    apply(quota(namespace, "q", "1Gi", size=size))
    wait_counted(namespace, "q")
    main = container(
        "sh", "-c", "map -x -s 1048576 2048; map -s 1048576 1024", pages="1Gi", size=size
    )
    apply(pod(namespace, "p", main))
    log = wait_log(namespace, "p", "touched 1024 MiB")
    assert f"mmap 2048 MiB: {REFUSED}" in log
    wait(
        "the quota to use 1Gi",
        lambda: get("hugetlbquota", "q", namespace)["status"]["used"].get(size) == "1Gi",
    )
    top = installed.groups(uid_of(namespace, "p"))[0]
    assert top.limits("1GB") == both(1024)
    assert top.limits("2MB") == both(0)
    seen(f"1 GiB touched; 2 GiB: {REFUSED}; 2 MiB pages: 0")


@pytest.fixture
def crun() -> Iterator[str]:
    """A RuntimeClass for crun, if the node's container runtime supports crun."""
    apply(
        {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": "e2e-crun"},
            "handler": "crun",
        }
    )
    yield "e2e-crun"
    delete("runtimeclass", "e2e-crun")


def run_both_runtimes(host: Host, namespace: str, crun: str) -> dict[str, list[Group]]:
    """Run the same pod with runc and with crun; return its cgroups by runtime."""
    apply(quota(namespace, "q", "64Mi"))
    wait_counted(namespace, "q")
    command = ("sh", "-c", "map -x 24; map 8")
    main = container(*command, pages="16Mi")
    apply(pod(namespace, "runc", main), pod(namespace, "crun", main, runtimeClassName=crun))
    found = {}
    for name in ("runc", "crun"):
        log = wait_log(namespace, name, "touched 8 MiB")
        assert f"mmap 24 MiB: {REFUSED}" in log, f"{name}: {log}"
        assert "SIGBUS" not in log
        found[name] = wait_limits(host, uid_of(namespace, name), 16)
    return found


def test_runc_and_crun(installed: Host, namespace: str, crun: str, seen: Seen) -> None:
    if "crun" not in installed.run("crun --version 2>/dev/null || true"):
        pytest.skip("the node has no crun")
    groups = run_both_runtimes(installed, namespace, crun)
    seen(", ".join(f"{name}: {len(each)} cgroups at 16 MiB" for name, each in groups.items()))


CONFIG = "/etc/containerd/config.toml"


def test_containerd_that_writes_hugetlb_limits_itself(
    installed: Host, namespace: str, crun: str, seen: Seen
) -> None:
    """With `disable_hugetlb_controller = false`, runc and crun write container limits too."""
    before = installed.run(f"cat {CONFIG}")
    if "disable_hugetlb_controller = true" not in before or "crun" not in before:
        pytest.skip(f"{CONFIG} does not say disable_hugetlb_controller = true, or has no crun")
    turn = "s/disable_hugetlb_controller = {}/disable_hugetlb_controller = {}/"
    installed.run(f"sed -i '{turn.format('true', 'false')}' {CONFIG}")
    installed.restart("containerd")
    try:
        groups = run_both_runtimes(installed, namespace, crun)
    finally:
        installed.run(f"sed -i '{turn.format('false', 'true')}' {CONFIG}")
        installed.restart("containerd")
    seen(", ".join(f"{name}: {len(each)} cgroups at 16 MiB" for name, each in groups.items()))


def test_kubelets_resize_of_an_idle_pod_is_repaired(
    installed: Host, namespace: str, seen: Seen
) -> None:
    """Kubelet v1.37 writes 0 into a pod's hugetlb limits when it resizes the pod in place."""
    apply(quota(namespace, "q", "16Mi"))
    wait_counted(namespace, "q")
    apply(pod(namespace, "p", container("sleep", "infinity", pages="16Mi")))
    wait_phase(namespace, "p")
    uid = uid_of(namespace, "p")
    wait_limits(installed, uid, 16)
    resize(namespace, "p")
    wait("kubelet to end the resize", lambda: not resize_conditions(namespace, "p"))
    wait_limits(installed, uid, 16)
    log = kubectl("exec", "--namespace", namespace, "p", "--", "map", "-x", "8")
    assert "touched 8 MiB" in log
    seen("16 MiB again after the resize; 8 MiB touched")


def test_kubelets_resize_of_a_pod_that_holds_pages_waits(
    installed: Host, namespace: str, seen: Seen
) -> None:
    """The kernel refuses kubelet's 0 with EBUSY. The pod runs on, and kubelet tries again."""
    apply(quota(namespace, "q", "16Mi"))
    wait_counted(namespace, "q")
    apply(pod(namespace, "p", container("map", "8", pages="16Mi")))
    wait_log(namespace, "p", "touched 8 MiB")
    resize(namespace, "p")

    def stuck() -> str:
        return next((each for each in resize_conditions(namespace, "p") if "busy" in each), "")

    message = wait("kubelet to say that the cgroup is busy", stuck)
    wait_limits(installed, uid_of(namespace, "p"), 16)
    assert get("pod", "p", namespace)["status"]["phase"] == "Running"
    seen(f"PodResizeInProgress: ...{message[-80:]}")


def resize(namespace: str, name: str) -> None:
    """Resize the CPU request of the pod in place."""
    wanted = '{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"110m"}}}]}}'
    try:
        kubectl(
            *("patch", "pod", name, "--namespace", namespace, "--subresource", "resize"),
            *("--patch", wanted),
        )
    except CommandFailed as error:
        if "the server could not find the requested resource" in error.output:
            pytest.skip("the cluster has no in-place resize (Kubernetes before 1.33)")
        raise


def resize_conditions(namespace: str, name: str) -> list[str]:
    """The conditions in which kubelet reports an unfinished resize."""
    return [
        f"{each.get('reason', '')} {each.get('message', '')}".strip() or each["type"]
        for each in get("pod", name, namespace)["status"].get("conditions", [])
        if each["type"].startswith("PodResize") and each["status"] == "True"
    ]


def test_a_huge_page_volume(installed: Host, namespace: str, seen: Seen) -> None:
    """An emptyDir of huge pages has no limit of its own; its charge ends with the pod."""
    apply(quota(namespace, "q", "16Mi"))
    wait_counted(namespace, "q")
    main = container("sh", "-c", "map -x 24 /pages/a; rm /pages/a; map 8 /pages/b", pages="16Mi")
    main["volumeMounts"] = [mount()]
    apply(pod(namespace, "p", main, volumes=[hugetlb_volume()]))
    log = wait_log(namespace, "p", "touched 8 MiB")
    assert f"mmap 24 MiB: {REFUSED}" in log
    delete("pod", "p", namespace)
    wait_used(namespace, "q", "0")
    seen(f"24 MiB: {REFUSED}; 8 MiB touched; 0 after the pod")
