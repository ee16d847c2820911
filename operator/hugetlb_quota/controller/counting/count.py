"""The result of one count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from hugetlb_quota.accounting.recount import ChargedPod, Identities, Retained, RetainedFile


@dataclass(frozen=True, slots=True)
class Held:
    """An ended pod that is still charged, because one of ``nodes`` gave no evidence yet."""

    pod: ChargedPod
    nodes: frozenset[str]


class Orphan(NamedTuple):
    """A pod with huge pages that no quota pays for. The pod is gone, or nobody knows the pod.

    ``pod``: the pod's ``namespace/name``; "" if nobody knows the pod.
    """

    node: str
    uid: str
    pod: str

    def __str__(self) -> str:
        return self.pod or f"of UID {self.uid}"


@dataclass(frozen=True, slots=True)
class Count:
    """The charges of all included UIDs.

    ``pods``: the pods that are charged with their demand. ``held``: those of ``pods`` that have
    ended. ``retained``, ``files``: what gone pods left. ``waiting``: by UID, the nodes that
    may release the pod by their next report.
    """

    pods: tuple[ChargedPod, ...]
    held: tuple[Held, ...]
    retained: tuple[Retained, ...]
    files: tuple[RetainedFile, ...]
    identities: Identities
    orphans: frozenset[Orphan]
    waiting: Mapping[str, frozenset[str]] = field(default_factory=dict)
