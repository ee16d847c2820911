"""Reports charges that no quota pays for: once each, in the log and by an Event on the node."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.node import KIND
from hugetlb_quota.controller.counting.count import Orphan
from hugetlb_quota.kube import events

#: The most pods that one Event names.
_MOST_NAMED: Final = 5

logger = logging.getLogger(__name__)


class OrphanReporter:
    """Reports each orphan when a count first finds it.

    :param instance: the name of this controller, for Events.
    """

    def __init__(self, connection: events.EventApi, instance: str) -> None:
        self._connection = connection
        self._instance = instance
        self._reported = frozenset[Orphan]()
        self._publishing: set[asyncio.Task[None]] = set()

    def report(self, orphans: frozenset[Orphan]) -> None:
        """Report those of ``orphans`` that the last call did not have.

        :param orphans: all orphans at present.
        """
        new: dict[str, list[Orphan]] = {}
        for each in sorted(orphans - self._reported):
            new.setdefault(each.node, []).append(each)
        self._reported = orphans
        for node, on_node in new.items():
            logger.warning("Node %s: %s", node, sentence(node, on_node))
            task = asyncio.get_running_loop().create_task(self._publish(node, on_node))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)

    async def _publish(self, node: str, orphans: list[Orphan]) -> None:
        await events.publish(
            self._connection,
            events.Regarding(API_VERSION, KIND, "", node),
            kind="Warning",
            reason="NobodyPays",
            note=sentence(node, orphans),
            program="controller",
            instance=self._instance,
        )


def sentence(node: str, orphans: Iterable[Orphan]) -> str:
    """What the orphans on ``node`` are, and what to do."""
    all_of_them = list(orphans)
    named = ", ".join(str(each) for each in all_of_them[:_MOST_NAMED])
    more = len(all_of_them) - _MOST_NAMED
    if len(all_of_them) == 1:
        pods, the_files, them = "pod", "the pod's files", "the pod"
    else:
        pods, the_files, them = f"{len(all_of_them)} pods:", "the pods' files", "the pods"
    return (
        f"Huge pages are charged to {pods} {named}{f' and {more} more' if more > 0 else ''}, and no"
        " quota pays for them. A pod with a name is gone, and no quota selects the pod or is its"
        " heir. A pod with only a UID is unknown: no report has its name. HugeTLBNode"
        f" {node} shows the amounts. Remove {the_files}, or create a quota that selects {them}."
    )
