"""The controller's informers: they feed the books with pods, quotas, reports, Nodes, namespaces."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hugetlb_quota.controller.counting.books import Books
from hugetlb_quota.controller.counting.nodes import (
    NodeFacts,
    NodeReport,
    project_node,
    project_report,
)
from hugetlb_quota.controller.counting.store import Namespace
from hugetlb_quota.kube.informer import Informer, ObjectKey, Source
from hugetlb_quota.kube.pods import Pod, project_demanding_pod
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.kube.resources import HUGETLB_NODES, HUGETLB_QUOTAS, NAMESPACES, NODES, PODS
from hugetlb_quota.program import about

logger = logging.getLogger(__name__)


class Informers:
    """One informer for each kind that a count depends on.

    :param books: the store and the census of these books get every change.
    :param warn: called with a quota that can't be understood, a reason in one word and a sentence.
    """

    def __init__(
        self, connection: Source, books: Books, warn: Callable[[QuotaObject, str, str], None]
    ) -> None:
        self._books = books
        self._warn = warn
        #: By node name, when the last report came, on the monotonic clock.
        self._reported_at: dict[str, float] = {}
        self.pods = Informer(connection, PODS, project_demanding_pod)
        self.quotas = Informer(connection, HUGETLB_QUOTAS, self._project_quota)
        self._reports = Informer(connection, HUGETLB_NODES, self._project_report)
        self._nodes = Informer(connection, NODES, project_node)
        self._namespaces = Informer(connection, NAMESPACES, _project_namespace)
        store = books.store
        self.pods.on_change(self._note_pod)
        self._nodes.on_change(self._note_node)
        self._reports.on_change(self._note_report)
        self.quotas.on_change(lambda old, new, _: store.quota_changed(old, new))
        self._namespaces.on_change(lambda old, new, _: store.namespace_changed(old, new))

    @property
    def all(self) -> tuple[Informer[Any], ...]:
        """All informers."""
        return (self.pods, self.quotas, self._reports, self._nodes, self._namespaces)

    @property
    def report_ages(self) -> Mapping[str, float]:
        """By node name, the seconds since the last report came."""
        now = time.monotonic()
        return {node: now - at for node, at in self._reported_at.items()}

    def forget_reports(self, kept: Iterable[str]) -> None:
        """Forget when reports came, except those of the nodes ``kept``."""
        self._reported_at = {name: self._reported_at[name] for name in kept}

    def _project_quota(self, raw: dict[str, Any]) -> QuotaObject:
        metadata = raw["metadata"]
        before = self.quotas.store.get(ObjectKey(metadata.get("namespace", ""), metadata["name"]))
        quota = QuotaObject.to_count(raw, before)
        if quota.invalid and (before is None or before.invalid != quota.invalid):
            sentence = (
                f"HugeTLBQuota {quota.key} can't be understood: {quota.invalid} Its charges stay,"
                " and its pods are refused. Correct its spec."
            )
            logger.error(sentence, extra=about(quota=quota.key))
            self._warn(quota, "Invalid", sentence)
        return quota

    def _project_report(self, raw: dict[str, Any]) -> NodeReport | None:
        before = self._reports.store.get(ObjectKey("", raw["metadata"]["name"]))
        return project_report(raw, before)

    def _note_pod(self, old: Pod | None, new: Pod | None, version: int) -> None:
        # During a list the informer has no resourceVersion.
        is_listing = not self.pods.resource_version
        self._books.census.pod_changed(old, new, version, missed=is_listing)
        self._books.store.pod_changed(old, new)

    def _note_node(self, old: NodeFacts | None, new: NodeFacts | None, version: int) -> None:
        is_listing = not self._nodes.resource_version
        self._books.store.nodes.node_changed(old, new, 0 if is_listing else version)

    def _note_report(self, old: NodeReport | None, new: NodeReport | None, _: int) -> None:
        if new is not None:
            self._reported_at[new.node] = time.monotonic()
        self._books.store.nodes.report_changed(old, new)


def _project_namespace(raw: Mapping[str, Any]) -> Namespace:
    metadata = raw["metadata"]
    return Namespace(
        metadata["name"], metadata.get("labels") or {}, "deletionTimestamp" in metadata
    )
