"""The census counts which pods are charged, and remembers ended pods between the counts.

Informers feed the census. It makes no requests.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from hugetlb_quota.accounting.attribution import Line
from hugetlb_quota.accounting.release import EndedPod
from hugetlb_quota.accounting.reservation import SOMEWHERE, UNBOUND
from hugetlb_quota.controller.counting.count import Count
from hugetlb_quota.controller.counting.count_builder import CountBuilder
from hugetlb_quota.controller.counting.snapshot import Snapshot
from hugetlb_quota.kube.pods import Pod

#: How many released pods the census remembers, so that reservations of these pods can be dropped.
#: At 100 pods per second this lasts ten times as long as a reservation.
RELEASED_KEPT = 60_000


class Census:
    """Counts, and remembers each pod that is gone from the API until the pod is released."""

    def __init__(self) -> None:
        #: The pods that are gone from the API and not released.
        self._gone: dict[str, tuple[Pod, EndedPod]] = {}
        #: The pods that only a line describes, each with a resourceVersion at which the pod was
        #: not in the API. From this version on the informer would have seen the pod come.
        self._only_lines: dict[str, tuple[Line, int]] = {}
        #: The released pods, oldest first.
        self._released: dict[str, None] = {}
        #: The released pods that the first report of their node may still name, each with its
        #: node, or UNBOUND.
        self._awaited: dict[str, tuple[Pod, str | None]] = {}

    def pod_changed(
        self, old: Pod | None, new: Pod | None, resource_version: int, *, missed: bool = False
    ) -> None:
        """Take in one change of a pod.

        :param missed: whether the change comes from a list, so that earlier changes of the pod may
            have been missed.
        """
        if new is not None:
            if not new.finished:
                self._released.pop(new.uid, None)
        elif old is not None:
            # The pod may have been bound before it was deleted.
            node = UNBOUND if missed and old.node is None else old.node
            self._gone[old.uid] = (old, EndedPod(old.uid, node, resource_version))

    @property
    def undecided(self) -> set[str]:
        """The UIDs of pods that are not in the API and depend on the reports of some node."""
        return self._gone.keys() | self._only_lines.keys() | self._awaited.keys()

    def was_released(self, uid: str) -> bool:
        """Whether the pod ``uid`` ended and is released."""
        return uid in self._released

    def count(self, snapshot: Snapshot) -> Count:
        """Count the pods that ``snapshot`` includes."""
        builder = CountBuilder(snapshot)
        in_api = {pod.uid for pod in snapshot.pods}
        self._update_lines(snapshot, in_api)
        for pod in snapshot.pods:
            if not pod.finished:
                builder.charge_pod(pod)
            else:
                self._end(builder, pod, EndedPod(pod.uid, pod.node, pod.resource_version))
        for uid in snapshot.select(self._gone.keys()):
            if uid not in in_api:
                self._end(builder, *self._gone[uid])
        for uid in snapshot.select(self._awaited.keys()):
            if not builder.keep_identity_of_released(*self._awaited[uid]):
                del self._awaited[uid]
        for uid in snapshot.select(self._only_lines.keys()):
            self._end_line(builder, *self._only_lines[uid])
        for uid in builder.charge_reported():
            self._released.pop(uid, None)
        return builder.result()

    def _update_lines(self, snapshot: Snapshot, in_api: Collection[str]) -> None:
        """Bring ``_only_lines`` up to date with ``snapshot``."""
        lines = snapshot.lines()
        for uid in snapshot.select(self._only_lines.keys()):
            # A counted pod stays charged even if its line was dropped for lack of room.
            if uid in in_api or uid in self._gone or not (uid in lines or self._is_counted(uid)):
                del self._only_lines[uid]
        for uid, line in lines.items():
            if uid not in in_api and uid not in self._gone and uid not in self._released:
                before = self._only_lines.get(uid)
                missing_at = snapshot.seen_up_to if before is None else before[1]
                self._only_lines[uid] = (line, max(missing_at, snapshot.listed_at))

    def _is_counted(self, uid: str) -> bool:
        """Whether the line of the pod ``uid`` is an identity of a counted pod."""
        return self._only_lines[uid][0].counted not in ("", SOMEWHERE)

    def _end(self, builder: CountBuilder, pod: Pod, ended: EndedPod) -> None:
        """Hold or release the pod that ended."""
        if pod.uid in self._released:
            # A released pod stays released, whatever is written to the pod later, unless its node
            # reports a cgroup of the pod. Then the pod was released because there was no agent or
            # no Node.
            ended = replace(ended, resource_version=0)
        if nodes := builder.lacking_nodes(ended):
            self._released.pop(pod.uid, None)
            builder.hold_pod(pod, nodes)
        else:
            self._gone.pop(pod.uid, None)
            self._release(pod.uid)
            is_kept = builder.keep_identity_of_released(pod, ended.node)
            if is_kept and len(self._awaited) < RELEASED_KEPT:
                self._awaited[pod.uid] = (pod, ended.node)

    def _end_line(self, builder: CountBuilder, line: Line, missing_at: int) -> None:
        """Hold or release a pod that only ``line`` describes.

        A counted pod stays charged until all nodes that may have run the pod prove its end.
        """
        ended = EndedPod(line.uid, line.counted or SOMEWHERE, missing_at)
        if nodes := builder.lacking_nodes(ended):
            builder.hold_line(line, nodes)
        elif line.counted:
            # A reservation that was never counted ends by its own rules.
            del self._only_lines[line.uid]
            self._release(line.uid)

    def _release(self, uid: str) -> None:
        self._released[uid] = None
        while len(self._released) > RELEASED_KEPT:
            del self._released[next(iter(self._released))]
