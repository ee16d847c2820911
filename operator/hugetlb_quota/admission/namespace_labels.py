"""The labels of all namespaces, from a watch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hugetlb_quota.admission.api import Api
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.informer import Informer
from hugetlb_quota.kube.resources import NAMESPACES


class _Labels(dict[str, str]):
    """The labels of the namespace ``name`` at the resourceVersion ``version``."""

    name = ""
    version = 0

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> _Labels:
        """The labels of a namespace from the API server's JSON."""
        labels = cls(raw["metadata"].get("labels") or {})
        labels.name = raw["metadata"]["name"]
        labels.version = int(raw["metadata"]["resourceVersion"])
        return labels


class NamespaceLabels:
    """The labels of each namespace in the newest version that this replica has seen.

    ``by_name``: the labels by the namespace's name. ``informer``: keeps them up to date while it
    runs.
    """

    def __init__(self, api: Api, longest_backoff: float) -> None:
        self._api = api
        self.by_name: dict[str, _Labels] = {}
        self.informer = Informer[_Labels](
            api, NAMESPACES, _Labels.of, longest_backoff=longest_backoff
        )
        self.informer.on_change(self._on_change)
        self.informer.on_progress(self._on_progress)

    async def read(self, name: str) -> None:
        """Read the labels of the namespace ``name`` from the API server.

        :raises ApiError: if the read fails.
        """
        before = self.by_name.get(name)
        try:
            raw = await self._api.get(NAMESPACES, name)
        except errors.NotFound:
            if self.by_name.get(name) is before:
                self.by_name.pop(name, None)
            return
        labels, now = _Labels.of(raw), self.by_name.get(name)
        # The watch may have delivered a later version before the answer came.
        if now is before or (now is not None and now.version < labels.version):
            self.by_name[name] = labels

    def _on_change(self, old: _Labels | None, new: _Labels | None, version: int) -> None:
        changed = old if new is None else new
        assert changed is not None
        now = self.by_name.get(changed.name)
        if now is not None and now.version > version:
            return  # a read has found a later version
        if new is not None:
            self.by_name[new.name] = new
        else:
            self.by_name.pop(changed.name, None)

    def _on_progress(self, listed: bool) -> None:
        if listed:
            # If the list has the same labels as the watch had, there is no change, but a read may
            # have found other labels meanwhile. After a loss of history, a read may be wrong.
            self.by_name.clear()
            self.by_name.update((each.name, each) for each in self.informer.store.values())
