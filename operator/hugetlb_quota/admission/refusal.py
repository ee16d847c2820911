"""Every sentence with which something is refused, or let through with a warning.

What is refused here surfaces as ``FailedCreate`` on a ReplicaSet: these sentences are
the user interface. Each names the object, the numbers, the limit and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Final

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter, Shortfall
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.accounting.reservation import LARGEST_RESERVATIONS
from hugetlb_quota.page_size import PageSize
from hugetlb_quota.quantity import render

#: Longer messages would be cut somewhere else, where it is not known what matters.
LONGEST: Final = 4096
#: How many quotas are told of with their numbers; the others by name.
_DETAILED: Final = 6


def over_quota(
    pod: str,
    shortfalls: Sequence[Shortfall],
    files: Mapping[QuotaKey, Sequence[RetainedFile]] | None = None,
    silent: Mapping[QuotaKey, str] | None = None,
) -> str:
    """A pod that does not fit: every quota that refuses it, size by size.

    :param files: the largest files that hold what is retained, by quota.
    :param silent: what is charged for want of a node's report, in a sentence, by quota.
    """
    by_size = sorted(shortfalls, key=lambda each: each.size)  # stable: leaf to root within
    asks = []
    for size, group in groupby(by_size, key=lambda each: each.size):
        refusing = list(group)
        reasons = ", and ".join(_no_room(each) for each in refusing[:_DETAILED])
        if others := refusing[_DETAILED:]:
            reasons += f"; nor is there room in {_names(each.quota for each in others)}"
        asks.append(f"{render(refusing[0].requested)} of {size.resource}, but {reasons}")
    quotas = list(dict.fromkeys(each.quota for each in shortfalls))
    what = "its limit" if len(quotas) == 1 else "their limits"
    remove, held = "", ""
    if any(each.retained for each in shortfalls):
        remove = " truncate or remove files of pods that are gone,"
        known = [file for quota in quotas for file in (files or {}).get(quota, ())]
        if known:
            held = f" Retained in {_files(known)}."
    for sentence in dict.fromkeys((silent or {}).get(quota, "") for quota in quotas):
        held += f" {sentence}" if sentence else ""
    return _bounded(
        f"pod {pod} asks for {'; and for '.join(asks)}."
        f"{held} Ask for less,{remove} stop pods that use huge pages under {_names(quotas)},"
        f" or have {what} raised."
    )


def detached(pod: str, why: object) -> str:
    """A pod whose chain of quotas is broken."""
    return _bounded(
        f"pod {pod} asks for huge pages, but what governs it can't be counted up to its root: {why}"
    )


def terminating(pod: str, quota: QuotaKey) -> str:
    """A pod under a quota that is being deleted."""
    return (
        f"pod {pod} asks for huge pages, but HugeTLBQuota {quota} is being deleted and takes no"
        f" more pods; wait until {quota} is gone, or create the pod under another quota."
    )


def uncounted(pod: str, quotas: Iterable[QuotaKey]) -> str:
    """A pod under a quota whose use is not known yet."""
    return _bounded(
        f"pod {pod} asks for huge pages, but the controller has not yet counted what runs under"
        f" HugeTLBQuota {_names(quotas)} since it was made or changed, or what its status said"
        " could not be read. Try again in a moment; if it stays so, see whether the controller of"
        " hugetlb-quota runs."
    )


def too_many_reservations(pod: str, counter: Counter) -> str:
    """A pod for which one object has no more place, though the limit may have."""
    count = len(counter.reservations)
    return (
        f"pod {pod} asks for huge pages, but HugeTLBQuota {counter.quota} holds {count}"
        f" reservations for pods being created, as many as fit ({LARGEST_RESERVATIONS} bytes; etcd"
        " stores no object above 1.5 MiB). Each goes when its pod is counted, or about a minute"
        " after its pod was refused: try again in a minute, create pods more slowly, or divide the"
        " quota's pods between several quotas; if it stays so, see whether the controller of"
        " hugetlb-quota runs."
    )


def invalid_quota(pod: str, why: object) -> str:
    """A pod in whose way there is a quota that can't be read."""
    return _bounded(
        f"pod {pod} asks for huge pages, but a quota that may govern it can't be read: {why}"
        " Correct its spec."
    )


def malformed_demand(pod: str, why: object) -> str:
    """A pod whose request is none."""
    return _bounded(f"pod {pod} is refused: {why}")


def forged_mirror(pod: str, annotation: str) -> str:
    """A pod that claims to be a mirror, and that no kubelet makes."""
    return (
        f"pod {pod} has the annotation {annotation}, by which a kubelet shows what it runs from a"
        " file, and no kubelet asks for it; leave the annotation out."
    )


def no_uid(pod: str) -> str:
    """A pod without the identity that a reservation needs."""
    return (
        f"pod {pod} asks for huge pages, but the API server sent no UID for it,"
        " so its pages can't be reserved; Kubernetes 1.30 or later is needed."
    )


def ungoverned(pod: str, namespace: str) -> str:
    """A pod that no quota selects, where a quota is required."""
    return _bounded(
        f"pod {pod} asks for huge pages, but no HugeTLBQuota of namespace {namespace} selects it,"
        " and this cluster gives huge pages only under one (requireQuota). Give the pod labels that"
        f" a HugeTLBQuota of {namespace} selects, or ask who manages quotas for one there."
    )


def overloaded(what: str, waiting: int, seconds: float) -> str:
    """A request that could not be answered in time, and is told so at once."""
    return (
        f"{what} is refused because {waiting} requests wait for the same quotas already, which"
        f" takes about {seconds:.1f} s, longer than the API server waits. Try again in a moment."
    )


def too_many_requests(what: str, most: int) -> str:
    """A request beyond those that one replica decides at a time."""
    return (
        f"{what} is refused because this replica of admission decides {most} other requests just"
        " now, as many as it can at a time. Try again in a moment."
    )


def time_short(what: str, seconds: float) -> str:
    """A decision that did not come about in time."""
    return (
        f"{what} is refused because its quotas could not be read and written within"
        f" {seconds:.1f} s; the API server may be busy. Try again; nothing stays charged for it."
    )


def unreachable(what: str, why: object) -> str:
    """A decision for which the API could not be asked."""
    return _bounded(
        f"{what} is refused because its quotas could not be read or written: {why} Try again."
    )


def unexpected(what: str, error: BaseException) -> str:
    """A decision that failed by a fault of this program."""
    return (
        f"{what} is refused because hugetlb-quota failed to decide ({type(error).__name__});"
        " its log says more."
    )


def invalid_spec(quota: QuotaKey, why: object) -> str:
    """A quota whose spec is wrong in itself."""
    return _bounded(f"HugeTLBQuota {quota} is refused: {why}")


def wrong_selector(quota: QuotaKey, field: str, what: str, why: str) -> str:
    """A quota with a selector that nothing can match."""
    return _bounded(
        f"HugeTLBQuota {quota} is refused: spec.{field} can match no {what}, because {why}"
    )


def bound_label(quota: QuotaKey, key: str) -> str:
    """A quota that selects pods by a label which they get when they are bound."""
    return _bounded(
        f"HugeTLBQuota {quota} is refused: spec.podSelector asks about the label {key}, which a pod"
        " gets from its node when it is bound, after its huge pages were charged. Select by a label"
        " that the pod is created with."
    )


def own_parent(quota: QuotaKey) -> str:
    """A quota that names itself as its parent."""
    return (
        f"HugeTLBQuota {quota} is refused: it names itself as its parent;"
        " name another quota in spec.parentRef, or leave it out to make this quota a root."
    )


def broken_chain(quota: QuotaKey, why: object) -> str:
    """A quota whose parent may not be its parent."""
    return _bounded(f"HugeTLBQuota {quota} is refused: {why}")


def others_under_way(quota: QuotaKey, others: Iterable[QuotaKey]) -> str:
    """A change that depends on others which may be stored at any moment."""
    return _bounded(
        f"The change of HugeTLBQuota {quota} is refused because {_names(others)}, above or below"
        " it, is being changed at the same time. Try again in a moment; a change that another"
        " program refused counts for a minute and a half."
    )


def can_not_note(quota: QuotaKey, why: object) -> str:
    """A change that can't be told to the other replicas."""
    return _bounded(
        f"The change of HugeTLBQuota {quota} is refused because it can't be kept apart from others"
        f" made at the same time: {why}"
    )


def above_ancestor(
    quota: QuotaKey, size: PageSize, hard: int, ancestor: QuotaKey, limit: int
) -> str:
    """A quota with a limit above that of the quota it is part of."""
    return (
        f"HugeTLBQuota {quota} is refused: its limit of {render(hard)} of {size.resource} is above"
        f" the {render(limit)} of {ancestor}, of which it is a part; lower it to {render(limit)} or"
        f" less, or raise {ancestor} first."
    )


def below_descendant(
    quota: QuotaKey, size: PageSize, limit: int, ancestor: QuotaKey, descendant: QuotaKey, hard: int
) -> str:
    """A change of ``quota`` after which a quota below it would have too high a limit."""
    return (
        f"The change of HugeTLBQuota {quota} is refused: it would leave {descendant} with"
        f" {render(hard)} of {size.resource}, above the {render(limit)} of {ancestor}, of which it"
        f" is a part; lower {descendant} to {render(limit)} or less first."
    )


def unsettled_move(counter: Counter) -> str:
    """A quota that is to move while pods are being created under it."""
    return _bounded(
        f"The parent of HugeTLBQuota {counter.quota} can't be changed while pods are being created"
        f" under it: {_charged(counter)}. Try again in a minute."
    )


def move_to_nowhere(counter: Counter, why: object) -> str:
    """A charged quota that is to move where no chain reaches a root."""
    return _bounded(
        f"HugeTLBQuota {counter.quota} can't be moved while huge pages are charged to it"
        f" ({_charged(counter)}), because its new chain does not hold: {why}"
    )


def no_room_to_move(counter: Counter, shortfalls: Sequence[Shortfall]) -> str:
    """A quota that brings along more than its new ancestors have room for."""
    reasons = ", and ".join(
        f"{_no_room(each)} of {each.size.resource}" for each in shortfalls[:_DETAILED]
    )
    return _bounded(
        f"HugeTLBQuota {counter.quota} can't be moved with what is charged to it"
        f" ({_charged(counter)}): {reasons}. It stays where it is; stop pods, or have the limit"
        " raised."
    )


def no_place_to_move(counter: Counter, ancestor: Counter) -> str:
    """A quota whose new ancestor holds as many reservations as it can."""
    return _bounded(
        f"HugeTLBQuota {counter.quota} can't be moved with what is charged to it"
        f" ({_charged(counter)}): HugeTLBQuota {ancestor.quota} holds {len(ancestor.reservations)}"
        f" reservations, as many as fit ({LARGEST_RESERVATIONS} bytes). Try again in a minute."
    )


def charged_delete(counter: Counter, files: Sequence[RetainedFile] = ()) -> str:
    """A quota that is to go while something is charged to it."""
    held = f" Retained in {_files(files)}." if files else ""
    todo = []
    if counter.pods or counter.pending:
        todo.append("stop the pods that use them")
    if counter.retained:
        todo.append(
            "truncate or remove the files, or set spec.deletionPolicy to Reparent to charge them to"
            " the quota above"
        )
    reserved = (
        " Reservations go by themselves about a minute after their pod was refused or counted."
        if counter.pending
        else ""
    )
    return _bounded(
        f"HugeTLBQuota {counter.quota} can't be deleted while huge pages are charged to it:"
        f" {_charged(counter)}.{held} To delete it, {'; and '.join(todo)}.{reserved}"
    )


def unguarded_delete(counter: Counter) -> str:
    """A charged quota that is to go, and nothing keeps it until its pods have gone."""
    return _bounded(
        f"HugeTLBQuota {counter.quota} can't be deleted yet: {_charged(counter)}, and the"
        " controller of hugetlb-quota has not put its finalizer on it. Try again in a moment, as"
        " the deletion of a namespace does by itself; if it stays so, see whether the controller"
        " of hugetlb-quota runs."
    )


def goes_when_uncharged(counter: Counter) -> str:
    """Warning: a charged quota that goes later, with its namespace or by itself."""
    return _bounded(
        f"HugeTLBQuota {counter.quota} takes no more pods, nor do the quotas below it, and goes"
        f" when nothing is charged any more: {_charged(counter)}."
    )


def charged_children(quota: QuotaKey, charged: Sequence[Counter]) -> str:
    """A quota that is to go while something is charged to quotas below it."""
    below = ", ".join(f"{each.quota} ({_amounts(each.used)})" for each in charged[:_DETAILED])
    return _bounded(
        f"HugeTLBQuota {quota} can't be deleted while huge pages are charged to quotas below it:"
        f" {below}. Delete them first, or give them another spec.parentRef."
    )


def nowhere_to_reparent(counter: Counter) -> str:
    """A quota with deletionPolicy Reparent and no quota above."""
    return _bounded(
        f"HugeTLBQuota {counter.quota} can't be deleted: {_charged(counter)}, and there is no quota"
        " above to charge it to. Truncate or remove the files, or name a parent in spec.parentRef."
    )


def reparented(counter: Counter, parent: QuotaKey | None) -> str:
    """Warning: what a quota that goes hands over."""
    amount = _amounts(counter.retained)
    if parent is None:
        return (
            f"{amount} that pods left in files stays on its nodes, charged to no quota; the"
            " HugeTLBNodes tell of it."
        )
    return f"{amount} that pods left in files is charged to HugeTLBQuota {parent} from now on."


def waits_for_parent(quota: QuotaKey, why: object) -> str:
    """Warning: a quota that is not attached yet."""
    return _bounded(
        f"HugeTLBQuota {quota} is not attached yet, and pods that ask for huge pages are refused"
        f" under it until it is: {why}"
    )


def attaches_above(
    quota: QuotaKey, size: PageSize, hard: int, ancestor: QuotaKey, limit: int
) -> str:
    """Warning: a quota that attaches although its limit is above its ancestor's."""
    return (
        f"HugeTLBQuota {quota} has {render(hard)} of {size.resource}, above the {render(limit)} of"
        f" {ancestor}, of which it is now a part; the lower limit holds for its pods."
    )


def below_use(counter: Counter, size: PageSize) -> str:
    """Warning: a limit below what is charged."""
    return (
        f"HugeTLBQuota {counter.quota} now limits {size.resource} to"
        f" {render(counter.hard.of(size))}, below the {render(counter.used.of(size))} charged;"
        " running pods keep theirs, and no pod is admitted until enough of them have gone."
    )


def selects_more(quota: QuotaKey, chain: Iterable[Counter]) -> str:
    """Warning: pods that run already may come under a quota, and nobody asks whether they fit.

    :param chain: the counters of the quota and of all above it.
    """
    rooms = [
        f"{counter.quota} has room for {render(max(0, limit - counter.used.of(size)))}"
        f" of {size.resource}"
        for counter in chain
        for size, limit in counter.hard.items()
    ]
    return _bounded(
        f"Pods that run already and that the new spec.podSelector of HugeTLBQuota {quota} selects"
        f" are charged to it and to all above it, also where they do not fit: {_listed(rooms)}."
        " The condition WithinLimits of each tells in a moment whether they do."
        if rooms
        else f"Pods that run already and that the new spec.podSelector of HugeTLBQuota {quota}"
        " selects are charged to it."
    )


def loses_children(quota: QuotaKey, children: Iterable[QuotaKey]) -> str:
    """Warning: quotas that are attached to this one and will not be any more."""
    return _bounded(
        f"{_names(children)} will have no parent without HugeTLBQuota {quota} as it is, and pods"
        " that ask for huge pages are refused there; change spec.parentRef of each."
    )


def _no_room(short: Shortfall) -> str:
    room = short.hard - short.used
    has = f"has room for {render(room)}" if room > 0 else "has no room"
    parts = []
    if short.pods:
        parts.append(f"{render(short.pods)} by pods")
    if short.retained:
        parts.append(f"{render(short.retained)} retained in files of pods that are gone")
    if short.reserved:
        parts.append(f"{render(short.reserved)} reserved for pods being created")
    by = f" ({', '.join(parts)})" if parts else ""
    return (
        f"HugeTLBQuota {short.quota} {has}: {render(short.used)} of {render(short.hard)} is"
        f" used{by}; {render(short.short)} is missing"
    )


def _files(files: Iterable[RetainedFile]) -> str:
    return _listed(
        list(
            dict.fromkeys(
                f"{file.path} on {file.node} ({render(file.charged)} by pod {file.pod})"
                for file in files
            )
        )
    )


def _charged(counter: Counter) -> str:
    count = len(counter.pending)
    reserved = (
        f", of which {_amounts(counter.reserved)} in {count}"
        f" {'reservation' if count == 1 else 'reservations'}"
        f" ({_listed([each.pod for each in counter.pending])})"
        if count
        else ""
    )
    retained = f", of which {_amounts(counter.retained)} retained" if counter.retained else ""
    return f"{_amounts(counter.used) or 'nothing'}{retained}{reserved}"


def _amounts(charge: Charge) -> str:
    return ", ".join(
        f"{render(amount)} of {size.resource}" for size, amount in charge.without_zeros().items()
    )


def _names(quotas: Iterable[QuotaKey]) -> str:
    return _listed([str(quota) for quota in quotas])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:16])
    return f"{shown} and {len(names) - 16} more" if len(names) > 16 else shown


def _bounded(sentence: str) -> str:
    return sentence if len(sentence) <= LONGEST else sentence[: LONGEST - 3] + "..."
