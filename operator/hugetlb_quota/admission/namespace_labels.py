"""The labels of all namespaces, from a watch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hugetlb_quota.admission.api import Api
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.informer import Informer
from hugetlb_quota.kube.resources import NAMESPACES


class _Labels(dict[str, str]):
    """The labels of the namespace ``name``."""

    name = ""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> _Labels:
        """The labels of a namespace from the API server's JSON."""
        labels = cls(raw["metadata"].get("labels") or {})
        labels.name = raw["metadata"]["name"]
        return labels


class NamespaceLabels:
    """The labels of each namespace in the newest version that this replica has seen.

    ``by_name``: the labels by the namespace's name. ``informer``: keeps them up to date while it
    runs.
    """

    def __init__(self, api: Api, longest_backoff: float) -> None:
        self._api = api
        self.by_name: dict[str, Mapping[str, str]] = {}
        self.informer = Informer[_Labels](
            api, NAMESPACES, _Labels.of, longest_backoff=longest_backoff
        )
        self.informer.on_change(self._on_change)

    async def read(self, name: str) -> None:
        """Read the labels of the namespace ``name`` from the API server.

        :raises ApiError: if the read fails.
        """
        try:
            raw = await self._api.get(NAMESPACES, name)
        except errors.NotFound:
            self.by_name.pop(name, None)
        else:
            self.by_name[name] = _Labels.of(raw)

    def _on_change(self, old: _Labels | None, new: _Labels | None, version: int) -> None:
        if new is not None:
            self.by_name[new.name] = new
        elif old is not None:
            self.by_name.pop(old.name, None)
