"""The pods that a manifest makes: the pod itself, or the pods of a workload's template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

Json = dict[str, Any]

#: A field that only a bound pod has.
_SET_BY_SCHEDULER: Final = "nodeName"
#: The path of the pod template, by kind.
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
    """The manifest makes no pods."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pod that may be created.

    ``origin``: the object that makes the pod, such as ``Deployment web``. ``replicas``: the number
    of such pods at a time; None if the number depends on the cluster. ``namespace``: "" if the
    manifest names none. ``stored``: the cluster has this pod, and the candidate is a copy.
    """

    origin: str
    namespace: str
    name: str
    pod: Json
    replicas: int | None = 1
    stored: bool = False

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels of the pod."""
        return _mapping(self.pod["metadata"].get("labels"))

    @property
    def spec(self) -> Json:
        """The spec of the pod."""
        return _mapping(self.pod.get("spec"))


def candidates(documents: Iterator[Any]) -> list[Candidate]:
    """The pods that the objects of a manifest make. Objects that make no pods are skipped.

    :raises NoPods: when no object makes pods.
    """
    made = [candidate for document in documents for candidate in _candidates(document)]
    if not made:
        kinds = ", ".join(("Pod", *_TEMPLATES))
        raise NoPods(f"it has no object that makes pods ({kinds})")
    return made


def candidate(raw: Json, kind: str = "") -> Candidate:
    """The pod that an object of the cluster makes.

    :param kind: the kind, for an object from a list; such an object has no ``kind``.
    :raises NoPods: when the object makes no pods.
    """
    kind = raw.get("kind") or kind
    made = list(_candidates({**raw, "kind": kind}))
    if not made:
        raise NoPods(f"a {kind} makes no pods")
    return replace(made[0], stored=kind == "Pod")


def _candidates(raw: Any) -> Iterator[Candidate]:
    if not isinstance(raw, dict):
        return
    kind = str(raw.get("kind") or "")
    if kind.endswith("List") and isinstance(raw.get("items"), list):
        for each in raw["items"]:
            yield from _candidates(each)
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
        template = _mapping(template)
        pod = _pod(name, _mapping(template.get("metadata")), template.get("spec"))
        yield Candidate(f"{kind} {name}", namespace, name, pod, _replicas(kind, raw))


def _pod(name: str, metadata: Mapping[str, Any], spec: Any) -> Json:
    """A pod for a dry run: a generated name, labels, annotations and spec, and nothing else."""
    kept = {key: metadata[key] for key in ("labels", "annotations") if metadata.get(key)}
    unbound = {key: value for key, value in _mapping(spec).items() if key != _SET_BY_SCHEDULER}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": f"{name[:50]}-", **kept},
        "spec": _with_requests(unbound),
    }


def _with_requests(spec: Json) -> Json:
    """The spec with the API server's defaults: a limit without a request is the request too."""
    complete = _limits_as_requests(spec)
    for name in ("containers", "initContainers"):
        if isinstance(spec.get(name), list):
            complete[name] = [_limits_as_requests(_mapping(each)) for each in spec[name]]
    return complete


def _limits_as_requests(holder: Json) -> Json:
    resources = _mapping(holder.get("resources"))
    requests = {**_mapping(resources.get("limits")), **_mapping(resources.get("requests"))}
    return {**holder, "resources": {**resources, "requests": requests}} if requests else {**holder}


def _replicas(kind: str, raw: Json) -> int | None:
    spec = _mapping(raw.get("spec"))
    if kind == "CronJob":
        spec = _mapping(_mapping(spec.get("jobTemplate")).get("spec"))
    if kind == "DaemonSet":
        return None
    number = spec.get("parallelism" if kind in ("Job", "CronJob") else "replicas", 1)
    return number if isinstance(number, int) else 1


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
