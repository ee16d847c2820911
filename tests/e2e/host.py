"""The node's cgroup files, services and folders, through a privileged pod."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.e2e.kubectl import CommandFailed, Json, apply, delete, kubectl, run, wait
from tests.e2e.pods import container, pod, wait_phase

NAMESPACE = "e2e-host"

#: One process reads all files, because an emulated processor starts programs slowly.
CGROUPS = r"""
cd /sys/fs/cgroup
find . -type d \( -name '*pod@UNDERSCORES@*' -o -name 'pod@UID@' \) -prune \
    -exec grep -rs . --include='hugetlb.*.max' --include='hugetlb.*.current' {} + || true
"""


@dataclass(frozen=True)
class Group:
    """The hugetlb files of a cgroup: values by name, such as "hugetlb.2MB.rsvd.max"."""

    path: str
    files: dict[str, str]

    def limits(self, size: str = "2MB") -> tuple[str, str]:
        """The values of `max` and `rsvd.max` for a page size in the kernel's spelling."""
        return self.files[f"hugetlb.{size}.max"], self.files[f"hugetlb.{size}.rsvd.max"]


class Host:
    """A root shell in all namespaces of the node's first process."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._pod = f"host-{node}"

    def start(self) -> None:
        """Start the privileged pod on the node."""
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        shell = container("sleep", "infinity", securityContext={"privileged": True})
        # The node may differ from the node of the scenes' pods, so drop the default nodeSelector.
        where: Json = {"nodeName": self.node, "nodeSelector": {}}
        apply(
            namespace,
            pod(NAMESPACE, self._pod, shell, **where, hostPID=True, hostNetwork=True),
        )
        wait_phase(NAMESPACE, self._pod)

    def stop(self) -> None:
        """Remove the pod, and wait until it is gone."""
        delete("pod", self._pod, NAMESPACE)

    def run(self, script: str, timeout: float = 240.0) -> str:
        """Run a shell script on the node; return its output. Raises CommandFailed."""
        enter = ("nsenter", "-t", "1", "--all", "--", "sh", "-c", script)
        return kubectl(
            "exec", "--namespace", NAMESPACE, self._pod, "--", *enter, timeout=timeout
        ).strip()

    def answers(self) -> bool:
        """Whether the shell works; it needs kubelet and containerd."""
        try:
            return self.run("echo here", timeout=30) == "here"
        except CommandFailed:
            return False

    def restart(self, *services: str) -> None:
        """Restart services that the shell itself depends on, and wait until all run again."""
        names = " ".join(services)
        show_pids = f"systemctl show --property MainPID --value {names}"
        before = self.run(show_pids).split()
        self.later(f"systemctl restart {names}")

        def restarted() -> bool:
            now = self.run(show_pids, timeout=30).split()
            return "0" not in now and not set(now) & set(before)

        wait(f"{names} to run again on {self.node}", restarted)

    def later(self, command: str) -> None:
        """Let the node's systemd run a command in 3 seconds, after this shell has ended."""
        self.run(f"systemd-run --on-active=3s --timer-property=AccuracySec=100ms {command}")

    def groups(self, pod_uid: str) -> list[Group]:
        """All cgroups of a pod; the pod's own cgroup comes first."""
        script = CGROUPS.replace("@UNDERSCORES@", pod_uid.replace("-", "_"))
        found: dict[str, dict[str, str]] = {}
        for line in self.run(script.replace("@UID@", pod_uid)).splitlines():
            file, _, value = line.rpartition(":")
            path, _, name = file.rpartition("/")
            found.setdefault(path, {})[name] = value
        return [Group(path, files) for path, files in sorted(found.items())]


def forget() -> None:
    """Remove the namespace of the privileged pods, and wait until it is gone."""
    delete("namespace", NAMESPACE)


def nodes_with_pages() -> list[Json]:
    """The nodes with huge pages of 2 MiB."""
    found: list[Json] = json.loads(run("kubectl", "get", "nodes", "-o", "json"))["items"]
    return [
        node for node in found if node["status"]["allocatable"].get("hugepages-2Mi", "0") != "0"
    ]
