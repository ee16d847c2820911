"""Sentences that refuse a quota's creation, change or deletion, or warn about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hugetlb_quota.accounting.counter import Counter, Shortfall
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.accounting.reservation import LARGEST_RESERVATIONS
from hugetlb_quota.admission.wording import (
    CHECK_CONTROLLER,
    MOST_DETAILED,
    amounts,
    bounded,
    charged,
    listed,
    names,
    no_room,
    retained_files,
)
from hugetlb_quota.page_size import PageSize
from hugetlb_quota.quantity import render


def invalid_spec(quota: QuotaKey, why: object) -> str:
    """The spec of the quota is invalid."""
    return bounded(f"HugeTLBQuota {quota} is refused: {why}")


def wrong_selector(quota: QuotaKey, field: str, what: str, why: str) -> str:
    """Nothing can match a selector of the quota."""
    return bounded(
        f"HugeTLBQuota {quota} is refused: spec.{field} can match no {what}, because {why}"
    )


def bound_label(quota: QuotaKey, key: str) -> str:
    """The quota selects pods by a label that pods get only when they are bound."""
    return bounded(
        f"HugeTLBQuota {quota} is refused: spec.podSelector uses the label {key}, which a pod"
        " gets from its node when the pod is bound, after its huge pages were charged. Use a label"
        " that the pod has when it is created."
    )


def own_parent(quota: QuotaKey) -> str:
    """The quota names itself as its parent."""
    return (
        f"HugeTLBQuota {quota} is refused: it names itself as its parent;"
        " name another quota in spec.parentRef, or leave spec.parentRef out to make this quota a"
        " root."
    )


def broken_chain(quota: QuotaKey, why: object) -> str:
    """The new parent does not let the quota attach, or the chain would be a cycle."""
    return bounded(f"HugeTLBQuota {quota} is refused: {why}")


def others_under_way(quota: QuotaKey, others: Iterable[QuotaKey]) -> str:
    """The change depends on other changes that the API server may still store."""
    found = list(others)
    are, changes = ("is", "change") if len(found) == 1 else ("are", "changes")
    return bounded(
        f"The change of HugeTLBQuota {quota} is refused because {names(found)}, above or below"
        f" it, {are} being changed at the same time. Try again in a moment. If another program"
        f" refuses the other {changes}, try again after a minute and a half."
    )


def notes_unusable(quota: QuotaKey, why: object) -> str:
    """The change can't be noted for the other replicas."""
    return bounded(
        f"The change of HugeTLBQuota {quota} is refused because it can't be ordered with other"
        f" changes made at the same time: {why}"
    )


def above_ancestor(
    quota: QuotaKey, size: PageSize, hard: int, ancestor: QuotaKey, limit: int
) -> str:
    """The limit of the quota is above the limit of an ancestor."""
    return (
        f"HugeTLBQuota {quota} is refused: its limit of {render(hard)} of {size.resource} is above"
        f" the {render(limit)} of {ancestor}, its ancestor; lower the limit to {render(limit)} or"
        f" less, or raise {ancestor} first."
    )


def below_descendant(
    quota: QuotaKey, size: PageSize, limit: int, ancestor: QuotaKey, descendant: QuotaKey, hard: int
) -> str:
    """After the change of ``quota``, the limit of a quota below would be above its ancestor's."""
    return (
        f"The change of HugeTLBQuota {quota} is refused: it would leave {descendant} with"
        f" {render(hard)} of {size.resource}, above the {render(limit)} of {ancestor}, its"
        f" ancestor; lower {descendant} to {render(limit)} or less first."
    )


def move_with_reservations(counter: Counter) -> str:
    """A new parent while pods are being created under the quota."""
    return bounded(
        f"The parent of HugeTLBQuota {counter.quota} can't be changed while pods are being created"
        f" under it: {charged(counter)}. Try again in a minute."
    )


def move_to_nowhere(counter: Counter, why: object) -> str:
    """A new parent for a charged quota, and the new chain does not reach a root."""
    return bounded(
        f"HugeTLBQuota {counter.quota} can't be moved while huge pages are charged to it"
        f" ({charged(counter)}), because its new chain does not reach a root: {why}"
    )


def no_room_to_move(counter: Counter, shortfalls: Sequence[Shortfall]) -> str:
    """The new ancestors have no room for what is charged to the quota."""
    reasons = ", and ".join(
        f"{no_room(each)} of {each.size.resource}" for each in shortfalls[:MOST_DETAILED]
    )
    return bounded(
        f"HugeTLBQuota {counter.quota} can't be moved with its charge"
        f" ({charged(counter)}): {reasons}. The quota stays where it is; stop pods, or have the"
        " limit raised."
    )


def no_line_for_move(counter: Counter, ancestor: Counter) -> str:
    """The object of a new ancestor has no room for another reservation."""
    return bounded(
        f"HugeTLBQuota {counter.quota} can't be moved with its charge"
        f" ({charged(counter)}): HugeTLBQuota {ancestor.quota} holds {len(ancestor.reservations)}"
        f" reservations, as many as fit ({LARGEST_RESERVATIONS} bytes). Try again in a minute."
    )


def charged_delete(counter: Counter, files: Sequence[RetainedFile] = ()) -> str:
    """The deletion of a charged quota."""
    held = f" Retained in {retained_files(files)}." if files else ""
    todo = []
    if counter.pods or counter.pending:
        todo.append("stop the pods that use them")
    if counter.retained:
        todo.append(
            "truncate or remove the files, or set spec.deletionPolicy to Reparent to charge them to"
            " the quota above"
        )
    reserved = (
        " A reservation ends by itself when its pod is counted, or about a minute after its pod was"
        " refused."
        if counter.pending
        else ""
    )
    return bounded(
        f"HugeTLBQuota {counter.quota} can't be deleted while huge pages are charged to it:"
        f" {charged(counter)}.{held} To delete it, {'; and '.join(todo)}.{reserved}"
    )


def unguarded_delete(counter: Counter) -> str:
    """The deletion of a charged quota that has no finalizer to wait for its pods."""
    return bounded(
        f"HugeTLBQuota {counter.quota} can't be deleted yet: {charged(counter)} is charged to"
        " it, and the controller of hugetlb-quota has not put its finalizer on it. Try again in a"
        f" moment, as the deletion of a namespace does by itself; {CHECK_CONTROLLER}"
    )


def goes_when_uncharged(counter: Counter) -> str:
    """Warning: the quota is deleted later, when nothing is charged to it."""
    return bounded(
        f"HugeTLBQuota {counter.quota} and the quotas below it take no more pods. The quota is"
        f" deleted when nothing is charged to it any more; now {charged(counter)} is charged."
    )


def charged_children(quota: QuotaKey, children: Sequence[Counter]) -> str:
    """The deletion of a quota while something is charged to quotas below."""
    below = ", ".join(f"{each.quota} ({amounts(each.used)})" for each in children[:MOST_DETAILED])
    if len(children) == 1:
        what, these, them = "a quota", "this quota", "it"
    else:
        what, these, them = "quotas", "these quotas", "them"
    return bounded(
        f"HugeTLBQuota {quota} can't be deleted while huge pages are charged to {what} below it:"
        f" {below}. Delete {these} first, or give {them} another spec.parentRef."
    )


def nowhere_to_reparent(counter: Counter) -> str:
    """The deletion of a quota with deletionPolicy Reparent and no quota above."""
    return bounded(
        f"HugeTLBQuota {counter.quota} can't be deleted: {charged(counter)} is charged to it,"
        " and there is no quota above to charge it to. Truncate or remove the files, or name a"
        " parent in spec.parentRef."
    )


def reparented(counter: Counter, parent: QuotaKey | None) -> str:
    """Warning: what becomes of the retained charge of a deleted quota."""
    amount = amounts(counter.retained)
    if parent is None:
        return (
            f"{amount} that pods left in files stays on its nodes, charged to no quota; the"
            " HugeTLBNodes still report it."
        )
    return f"{amount} that pods left in files is charged to HugeTLBQuota {parent} from now on."


def waits_for_parent(quota: QuotaKey, why: object) -> str:
    """Warning: the quota is not attached yet."""
    return bounded(
        f"HugeTLBQuota {quota} is not attached yet. Until it is attached, its pods that ask for"
        f" huge pages are refused: {why}"
    )


def attaches_above(
    quota: QuotaKey, size: PageSize, hard: int, ancestor: QuotaKey, limit: int
) -> str:
    """Warning: the quota attaches, although its limit is above the limit of an ancestor."""
    return (
        f"HugeTLBQuota {quota} has {render(hard)} of {size.resource}, above the {render(limit)} of"
        f" {ancestor}, its ancestor; the lower limit holds for its pods."
    )


def limits_nothing(quota: QuotaKey) -> str:
    """Warning: the quota names no page size."""
    return (
        f"HugeTLBQuota {quota} limits nothing, because spec.hard is empty; its pods are charged to"
        " it and to all quotas above. To limit them here, name a size in spec.hard, such as"
        " hugepages-2Mi."
    )


def below_use(counter: Counter, size: PageSize) -> str:
    """Warning: the new limit is below what is charged."""
    return (
        f"HugeTLBQuota {counter.quota} now limits {size.resource} to"
        f" {render(counter.hard.of(size))}, below the {render(counter.used.of(size))} charged;"
        " running pods keep their pages, and no pod is admitted until enough pods have ended."
    )


def selects_more(quota: QuotaKey, chain: Iterable[Counter]) -> str:
    """Warning: the quota may select running pods, which are charged even if they do not fit.

    :param chain: the counters of the quota and of all quotas above.
    """
    rooms = [
        f"{counter.quota} has room for {render(max(0, limit - counter.used.of(size)))}"
        f" of {size.resource}"
        for counter in chain
        for size, limit in counter.hard.items()
    ]
    selected = f"Running pods that the new spec.podSelector of HugeTLBQuota {quota} selects"
    if not rooms:
        return bounded(f"{selected} are charged to it.")
    return bounded(
        f"{selected} are charged to it and to all quotas above, even if they do not fit:"
        f" {listed(rooms)}. The condition WithinLimits of each quota soon shows whether they fit."
    )


def loses_children(quota: QuotaKey, children: Iterable[QuotaKey]) -> str:
    """Warning: quotas that are attached to ``quota`` will not be attached any more."""
    lost = list(children)
    which = "this quota" if len(lost) == 1 else "each of these quotas"
    return bounded(
        f"HugeTLBQuota {quota} will no longer be the parent of {names(lost)}, and pods there that"
        f" ask for huge pages will be refused; change spec.parentRef of {which}."
    )
