"""What is charged on nodes and to no quota: it is said once, in the log and by an Event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.node import KIND
from hugetlb_quota.controller.count import Orphan
from hugetlb_quota.kube import events

#: Pods that an Event names before it says how many more there are.
_NAMED: Final = 5

logger = logging.getLogger(__name__)


class Orphans:
    """Says of each orphan, when it is first found, that no quota pays for it.

    :param instance: of this controller, for its Events.
    """

    def __init__(self, connection: events.EventApi, instance: str) -> None:
        self._connection = connection
        self._instance = instance
        self._told = frozenset[Orphan]()
        self._saying: set[asyncio.Task[None]] = set()

    def tell(self, found: frozenset[Orphan]) -> None:
        """Tell of those among ``found``, all that there are now, that were not there before."""
        new: dict[str, list[Orphan]] = {}
        for each in sorted(found - self._told):
            new.setdefault(each.node, []).append(each)
        self._told = found
        for node, orphans in new.items():
            logger.warning("Node %s: %s", node, sentence(node, orphans))
            task = asyncio.get_running_loop().create_task(self._publish(node, orphans))
            self._saying.add(task)
            task.add_done_callback(self._saying.discard)

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
    """What is to be known of the orphans on ``node``, and what to do."""
    all_of_them = list(orphans)
    named = ", ".join(str(each) for each in all_of_them[:_NAMED])
    more = len(all_of_them) - _NAMED
    pods = "pod" if len(all_of_them) == 1 else f"{len(all_of_them)} pods:"
    return (
        f"Huge pages are charged to {pods} {named}{f' and {more} more' if more > 0 else ''}, and no"
        " quota is charged for them: a pod that is not named is known to nobody; one that is named"
        " is gone, and no quota selects it or inherits from one that did. HugeTLBNode"
        f" {node} tells how much it is; remove their files, or make a quota that selects them."
    )
