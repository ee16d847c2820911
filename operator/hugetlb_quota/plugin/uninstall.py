"""``uninstall``: the plan to remove the finalizer from quotas, and the list of what is left.

The chart's hook does the same before ``helm uninstall``. This command is for clusters that have
lost the operator, and refuses while the operator is installed. The command changes nothing else;
the list names a command to remove each rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hugetlb_quota.kube.controller_lease import HOOK
from hugetlb_quota.kube.finalizers import has_finalizer
from hugetlb_quota.plugin.table import Screen, listed, table
from hugetlb_quota.plural import number_of

Json = dict[str, Any]

#: The number of names that a line lists before "and N more".
_MOST_NAMES: Final = 5
_QUOTAS: Final = "kubectl delete htq --all -A"


@dataclass(frozen=True, slots=True)
class Left:
    """The parts of hugetlb-quota that are in the cluster: raw quotas, and names.

    ``namespaces``: the namespaces that are being deleted and have quotas. ``webhooks``: the
    ValidatingWebhookConfigurations.
    """

    quotas: Sequence[Json]
    namespaces: Sequence[str]
    crds: Sequence[str]
    webhooks: Sequence[str]

    @property
    def guarded(self) -> list[Json]:
        """The quotas that have the finalizer."""
        return [each for each in self.quotas if has_finalizer(each)]


def installed(programs: Mapping[str, Sequence[Json]]) -> str:
    """The sentence that the operator is installed; "" if no Deployment or DaemonSet exists.

    :param programs: the Deployments and DaemonSets, by component.
    """
    names = [
        f"{'DaemonSet' if component == 'agent' else 'Deployment'} {_name(each)}"
        for component, workloads in programs.items()
        for each in workloads
    ]
    if not names:
        return ""
    return (
        f"hugetlb-quota is installed ({listed(names, _MOST_NAMES)}), so nothing was changed. Use"
        " helm uninstall, which removes the finalizers. If helm list -A does not show the release,"
        " remove its Deployments and its DaemonSet first, and run this command again."
    )


def led(before: Iterable[Json], after: Iterable[Json]) -> str:
    """The sentence that a program renewed a Lease between two reads; "" if none did."""
    versions = {_name(each): each["metadata"]["resourceVersion"] for each in before}
    for each in after:
        holder = each["spec"].get("holderIdentity")
        if not holder or versions.get(_name(each)) == each["metadata"]["resourceVersion"]:
            continue
        if holder == HOOK:
            return (
                f"The hook of helm uninstall holds Lease {_name(each)}, and removes the finalizers"
                " itself. Wait until helm uninstall ends."
            )
        return (
            f"{holder} (Lease {_name(each)}) leads: hugetlb-quota is installed, and would add the"
            " finalizers again. Use helm uninstall, which removes the finalizers, or stop the"
            " controllers first."
        )
    return ""


def plan(left: Left, screen: Screen) -> str:
    """The quotas with the finalizer, and the fate of each when the finalizer is removed."""
    guarded = left.guarded
    if not guarded:
        return "No quota has the operator's finalizer."
    rows = [[_name(each), _fate(each, left.namespaces)] for each in guarded]
    have = "has" if len(guarded) == 1 else "have"
    return (
        f"{table(('QUOTA', 'WITHOUT THE FINALIZER'), rows, screen)}\n\n"
        f"{number_of(len(guarded), 'quota')} {have} the operator's finalizer."
    )


def rest(left: Left) -> str:
    """The parts that are left, a line for each with the command that removes it."""
    return "\n".join(["Left in the cluster:", *(f"- {line}" for line in _rest(left))])


def document(left: Left, freed: Iterable[str]) -> Json:
    """The result as plain data.

    :param freed: the quotas from which the finalizer was removed.
    """
    return {
        "quotas": [
            {
                "namespace": each["metadata"]["namespace"],
                "name": each["metadata"]["name"],
                "finalizer": has_finalizer(each),
                "deleting": _is_deleting(each),
            }
            for each in left.quotas
        ],
        "letGo": list(freed),
        "namespaces": list(left.namespaces),
        "customResourceDefinitions": list(left.crds),
        "validatingWebhookConfigurations": list(left.webhooks),
    }


def _rest(left: Left) -> Iterator[str]:
    stay = [_name(each) for each in left.quotas if not _is_deleting(each)]
    go = [_name(each) for each in left.quotas if _is_deleting(each)]
    # First the webhooks: they keep quotas from being deleted.
    for name in left.webhooks:
        yield (
            f"ValidatingWebhookConfiguration {name}: without admission, quotas can't be changed or"
            " deleted, and its rules for pods refuse pods that ask for huge pages:"
            f" kubectl delete validatingwebhookconfiguration {name}"
        )
    if stay:
        yield (
            f"{number_of(len(stay), 'quota')} ({listed(stay, _MOST_NAMES)}) without effect, because"
            f" the operator is gone: {_QUOTAS}"
        )
    if go:
        yield f"{number_of(len(go), 'quota')} being deleted ({listed(go, _MOST_NAMES)})"
    if left.namespaces:
        names = listed(left.namespaces, _MOST_NAMES)
        yield f"{number_of(len(left.namespaces), 'namespace')} being deleted with quotas ({names})"
    if left.crds:
        yield (
            "CRDs. The next install uses them and all quotas; this command deletes both:"
            f" kubectl delete crd {' '.join(left.crds)}"
        )
    if not (left.quotas or left.crds or left.webhooks):
        yield "nothing"


def _fate(raw: Mapping[str, Any], namespaces: Sequence[str]) -> str:
    if raw["metadata"]["namespace"] in namespaces:
        return "is deleted with its namespace"
    return "is deleted" if _is_deleting(raw) else "stays"


def _is_deleting(raw: Mapping[str, Any]) -> bool:
    return bool(raw["metadata"].get("deletionTimestamp"))


def _name(raw: Mapping[str, Any]) -> str:
    return f"{raw['metadata']['namespace']}/{raw['metadata']['name']}"
