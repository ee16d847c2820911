"""The pods that a manifest would make: a pod itself, or a workload's template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

Json = dict[str, Any]

#: What a pod that is stored has, and one that is to be made has not.
_SET_BY_SCHEDULER: Final = "nodeName"
#: By kind: where the template is.
_TEMPLATES: Final[Mapping[str, tuple[str, ...]]] = {
    "Deployment": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "ReplicationController": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    "PodTemplate": ("template",),
}


class NoPods(ValueError):
    """A manifest that makes no pods."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pod that might be made.

    ``origin``: what makes it, as ``Deployment web``. ``replicas``: how many of it at a time;
    None when that depends on the cluster. ``namespace``: "" when the manifest names none.
    ``stored``: it is a pod that is there already, and this is one like it.
    """

    origin: str
    namespace: str
    name: str
    pod: Json
    replicas: int | None = 1
    stored: bool = False

    @property
    def labels(self) -> Mapping[str, str]:
        """The pod's."""
        found = self.pod["metadata"].get("labels")
        return found if isinstance(found, dict) else {}

    @property
    def spec(self) -> Json:
        """The pod's."""
        found = self.pod.get("spec")
        return found if isinstance(found, dict) else {}


def candidates(documents: Iterator[Any]) -> list[Candidate]:
    """The pods that the objects of a manifest make; those that make none are passed over.

    :raises NoPods: when none of them makes pods.
    """
    found = [each for document in documents for each in _of(document)]
    if not found:
        kinds = ", ".join(("Pod", *_TEMPLATES))
        raise NoPods(f"it holds no object that makes pods ({kinds})")
    return found


def candidate(raw: Json, kind: str = "") -> Candidate:
    """The pod that one object makes that is stored in the cluster.

    :param kind: of an object out of a list, which does not say it.
    :raises NoPods: when it makes none.
    """
    kind = raw.get("kind") or kind
    found = list(_of({**raw, "kind": kind}))
    if not found:
        raise NoPods(f"a {kind} makes no pods")
    return replace(found[0], stored=kind == "Pod")


def _of(raw: Any) -> Iterator[Candidate]:
    if not isinstance(raw, dict):
        return
    kind = str(raw.get("kind") or "")
    if kind.endswith("List") and isinstance(raw.get("items"), list):
        for each in raw["items"]:
            yield from _of(each)
        return
    metadata = _mapping(raw.get("metadata"))
    namespace, name = str(metadata.get("namespace") or ""), str(metadata.get("name") or "")
    name = name or str(metadata.get("generateName") or "").rstrip("-") or kind.lower()
    if kind == "Pod":
        yield Candidate(f"Pod {name}", namespace, name, _pod(name, metadata, raw.get("spec")))
    elif kind in _TEMPLATES:
        template: Any = raw
        for step in _TEMPLATES[kind]:
            template = _mapping(template).get(step)
        made = _mapping(template)
        pod = _pod(name, _mapping(made.get("metadata")), made.get("spec"))
        yield Candidate(f"{kind} {name}", namespace, name, pod, _replicas(kind, raw))


def _pod(name: str, metadata: Mapping[str, Any], spec: Any) -> Json:
    """A pod to create: with a name that is free, and what is its maker's to say."""
    kept = {key: metadata[key] for key in ("labels", "annotations") if metadata.get(key)}
    asked = {key: value for key, value in _mapping(spec).items() if key != _SET_BY_SCHEDULER}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": f"{name[:50]}-", **kept},
        "spec": _with_requests(asked),
    }


def _with_requests(spec: Json) -> Json:
    """With what the API server fills in: a limit alone is the request too."""
    made = _limits_as_requests(spec)
    for name in ("containers", "initContainers"):
        if isinstance(spec.get(name), list):
            made[name] = [_limits_as_requests(_mapping(each)) for each in spec[name]]
    return made


def _limits_as_requests(holder: Json) -> Json:
    asked = _mapping(holder.get("resources"))
    requests = {**_mapping(asked.get("limits")), **_mapping(asked.get("requests"))}
    return {**holder, "resources": {**asked, "requests": requests}} if requests else {**holder}


def _replicas(kind: str, raw: Json) -> int | None:
    spec = _mapping(raw.get("spec"))
    if kind == "CronJob":
        spec = _mapping(_mapping(spec.get("jobTemplate")).get("spec"))
    if kind == "DaemonSet":
        return None
    found = spec.get("parallelism" if kind in ("Job", "CronJob") else "replicas", 1)
    return found if isinstance(found, int) else 1


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
