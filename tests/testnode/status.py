"""The PodStatus JSON that the node reports for a pod and its containers. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

SIGNAL_BASE = 128
Phase = Literal["Pending", "Running", "Succeeded", "Failed"]


def now() -> str:
    """The present time in the API's format."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class ContainerState:
    """The state of one container, with its restarts."""

    name: str
    image: str
    sidecar: bool = False
    id: str = ""
    restarts: int = 0
    waiting: str = "PodInitializing"
    waiting_message: str = ""
    started_at: str = ""
    terminated: dict[str, Any] | None = None
    last_terminated: dict[str, Any] | None = None

    @property
    def running(self) -> bool:
        """Whether the container's process runs."""
        return bool(self.started_at) and self.terminated is None and not self.waiting

    @property
    def exit_code(self) -> int | None:
        """The exit code of the last run, if the container will not restart."""
        return None if self.terminated is None else int(self.terminated["exitCode"])

    def start(self, container_id: str) -> None:
        """Note that a new run began."""
        if self.id:
            self.restarts += 1
        self.id, self.started_at = container_id, now()
        self.terminated, self.waiting, self.waiting_message = None, "", ""

    def end(self, code: int, message: str, reason: str | None = None) -> None:
        """Note that the run ended with this exit code, 128 + n for signal n."""
        self.terminated = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "message": message,
            "startedAt": self.started_at or now(),
            "finishedAt": now(),
            "containerID": f"containerd://{self.id}",
        }
        if code > SIGNAL_BASE:
            self.terminated["signal"] = code - SIGNAL_BASE

    def wait(self, reason: str, message: str = "") -> None:
        """Note that the container waits; another run may follow."""
        self.last_terminated, self.terminated = self.terminated or self.last_terminated, None
        self.waiting, self.waiting_message = reason, message

    def to_json(self) -> dict[str, Any]:
        """The container's entry in containerStatuses."""
        state: dict[str, Any]
        if self.terminated is not None:
            state = {"terminated": self.terminated}
        elif self.waiting:
            state = {"waiting": {"reason": self.waiting, "message": self.waiting_message}}
        else:
            state = {"running": {"startedAt": self.started_at}}
        return {
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "containerID": f"containerd://{self.id}" if self.id else "",
            "restartCount": self.restarts,
            "ready": self.running,
            "started": self.running,
            "state": state,
            "lastState": {"terminated": self.last_terminated} if self.last_terminated else {},
        }


def initialized(inits: Sequence[ContainerState]) -> bool:
    """Whether all init containers have succeeded and all sidecars have started."""
    return all(one.id != "" if one.sidecar else one.exit_code == 0 for one in inits)


def phase_so_far(inits: Sequence[ContainerState], mains: Sequence[ContainerState]) -> Phase:
    """The phase of a pod that has not ended; exit codes do not count, as a restart may follow."""
    started = initialized(inits) and all(one.id for one in mains)
    return "Running" if started else "Pending"


def final_phase(inits: Sequence[ContainerState], mains: Sequence[ContainerState]) -> Phase:
    """The phase after the end of all containers; Failed if a container never ran."""
    done = initialized(inits) and all(one.exit_code == 0 for one in mains)
    return "Succeeded" if done else "Failed"


def pod_status(
    pod: Mapping[str, Any],
    inits: Sequence[ContainerState],
    mains: Sequence[ContainerState],
    reached: Phase,
    started_at: str,
) -> dict[str, Any]:
    """The node's part of ``pod.status``; an unchanged condition keeps its lastTransitionTime."""
    ready = reached == "Running" and all(one.running for one in mains)
    conditions = {
        "PodScheduled": True,
        "Initialized": initialized(inits),
        "ContainersReady": ready,
        "Ready": ready,
    }
    return {
        "phase": reached,
        "observedGeneration": pod["metadata"].get("generation", 0),
        "startTime": started_at,
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
        "podIP": "127.0.0.1",
        "podIPs": [{"ip": "127.0.0.1"}],
        "conditions": list(_conditions(pod, conditions, reached)),
        "initContainerStatuses": [one.to_json() for one in inits],
        "containerStatuses": [one.to_json() for one in mains],
    }


def _conditions(
    pod: Mapping[str, Any], wanted: Mapping[str, bool], reached: Phase
) -> Iterable[dict[str, Any]]:
    present = {one["type"]: one for one in (pod.get("status") or {}).get("conditions") or ()}
    for kind, holds in wanted.items():
        status = "True" if holds else "False"
        before = present.get(kind, {})
        changed = before.get("status") != status
        condition = {
            "type": kind,
            "status": status,
            "lastTransitionTime": now() if changed else before["lastTransitionTime"],
        }
        if not holds:
            condition["reason"] = (
                "PodCompleted" if reached in ("Succeeded", "Failed") else "ContainersNotReady"
            )
        yield condition
