"""``uninstall``: take the operator's finalizer off all quotas, and say what is left then.

As the chart's hook does before ``helm uninstall``, for who has lost the operator already. Nothing
else is changed: what is left is said with the command that removes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hugetlb_quota.kube.finalizers import is_guarded
from hugetlb_quota.plugin.table import Screen, count, listed, table

Json = dict[str, Any]

#: Names of one kind that a line has before it says how many more there are.
_NAMED: Final = 5
_QUOTAS: Final = "kubectl delete htq --all -A"


@dataclass(frozen=True, slots=True)
class Left:
    """What there is of hugetlb-quota in a cluster, as raw objects or their names.

    ``namespaces``: those that are being deleted and have quotas; ``webhooks``: configurations.
    """

    quotas: Sequence[Json]
    namespaces: Sequence[str]
    crds: Sequence[str]
    webhooks: Sequence[str]

    @property
    def guarded(self) -> list[Json]:
        """The quotas that have the finalizer."""
        return [each for each in self.quotas if is_guarded(each)]


def leader(before: Iterable[Json], after: Iterable[Json]) -> str:
    """Who leads: it has renewed its Lease between two looks. "" when nobody has."""
    versions = {_name(each): each["metadata"]["resourceVersion"] for each in before}
    for each in after:
        holder = each["spec"].get("holderIdentity")
        if holder and versions.get(_name(each)) != each["metadata"]["resourceVersion"]:
            return f"{holder} (Lease {_name(each)})"
    return ""


def plan(left: Left, screen: Screen) -> str:
    """Which quotas have the finalizer, and which of them go without it."""
    guarded = left.guarded
    if not guarded:
        return "No quota has the operator's finalizer."
    rows = [[_name(each), _fate(each, left.namespaces)] for each in guarded]
    have = "has" if len(guarded) == 1 else "have"
    return (
        f"{table(('QUOTA', 'WITHOUT THE FINALIZER'), rows, screen)}\n\n"
        f"{count(len(guarded), 'quota')} {have} the operator's finalizer."
    )


def rest(left: Left) -> str:
    """What is left, a line each with what removes it."""
    return "\n".join(["Left in the cluster:", *(f"- {line}" for line in _rest(left))])


def document(left: Left, let_go: Iterable[str]) -> Json:
    """The same as data."""
    return {
        "quotas": [
            {
                "namespace": each["metadata"]["namespace"],
                "name": each["metadata"]["name"],
                "finalizer": is_guarded(each),
                "deleting": _is_deleting(each),
            }
            for each in left.quotas
        ],
        "letGo": list(let_go),
        "namespaces": list(left.namespaces),
        "customResourceDefinitions": list(left.crds),
        "validatingWebhookConfigurations": list(left.webhooks),
    }


def _rest(left: Left) -> Iterator[str]:
    stay = [_name(each) for each in left.quotas if not _is_deleting(each)]
    go = [_name(each) for each in left.quotas if _is_deleting(each)]
    # First what keeps others from going.
    for name in left.webhooks:
        yield (
            f"ValidatingWebhookConfiguration {name}: where admission is gone, quotas can neither be"
            " changed nor deleted, and pods that ask for huge pages are refused as long as it"
            f" has rules for them: kubectl delete validatingwebhookconfiguration {name}"
        )
    if stay:
        yield (
            f"{count(len(stay), 'quota')} ({listed(stay, _NAMED)}), which"
            f" nobody counts or holds pods to any more: {_QUOTAS}"
        )
    if go:
        yield f"{count(len(go), 'quota')} being deleted ({listed(go, _NAMED)})"
    if left.namespaces:
        names = listed(left.namespaces, _NAMED)
        yield f"{count(len(left.namespaces), 'namespace')} being deleted with quotas ({names})"
    if left.crds:
        yield (
            "CRDs, which the next install finds with all quotas; this deletes both:"
            f" kubectl delete crd {' '.join(left.crds)}"
        )
    if not (left.quotas or left.crds or left.webhooks):
        yield "nothing"


def _fate(raw: Mapping[str, Any], namespaces: Sequence[str]) -> str:
    if raw["metadata"]["namespace"] in namespaces:
        return "it goes, with its namespace"
    return "it goes: it is being deleted" if _is_deleting(raw) else "it stays"


def _is_deleting(raw: Mapping[str, Any]) -> bool:
    return bool(raw["metadata"].get("deletionTimestamp"))


def _name(raw: Mapping[str, Any]) -> str:
    return f"{raw['metadata']['namespace']}/{raw['metadata']['name']}"
