"""Parts that several sentences to users share: amounts, names, and what is charged.

A message of admission is the user interface: ``kubectl`` prints the message, and a controller
such as a ReplicaSet shows it in a ``FailedCreate`` Event. Each message names the object, the
numbers, the limit, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter, Shortfall
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.quantity import render

#: The largest length of a message. Other programs cut longer messages in any place.
LONGEST: Final = 4096
#: A message gives the numbers of so many quotas, and only names the other quotas.
MOST_DETAILED: Final = 6
#: A list in a message has so many items at most.
_MOST_LISTED: Final = 16
#: The last sentence of messages about a delay that the controller may cause.
CHECK_CONTROLLER: Final = "if this goes on, check that the controller of hugetlb-quota runs."


def no_room(short: Shortfall) -> str:
    """That a quota has no room, with all numbers."""
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


def retained_files(files: Iterable[RetainedFile]) -> str:
    """The files with their nodes, charges and pods; each file once."""
    found = (
        f"{file.path} on {file.node} ({render(file.charged)} by pod {file.pod})" for file in files
    )
    return listed(list(dict.fromkeys(found)))


def charged(counter: Counter) -> str:
    """All that is charged to a quota, and how much of it is retained or reserved."""
    count = len(counter.pending)
    reserved = (
        f", including {amounts(counter.reserved)} in {count}"
        f" {'reservation' if count == 1 else 'reservations'}"
        f" ({listed([each.pod for each in counter.pending])})"
        if count
        else ""
    )
    retained = f", including {amounts(counter.retained)} retained" if counter.retained else ""
    return f"{amounts(counter.used) or 'nothing'}{retained}{reserved}"


def amounts(charge: Charge) -> str:
    """A charge as "16Mi of hugepages-2Mi, 1Gi of hugepages-1Gi"; "" for an empty charge."""
    return ", ".join(
        f"{render(amount)} of {size.resource}" for size, amount in charge.without_zeros().items()
    )


def names(quotas: Iterable[QuotaKey]) -> str:
    """The names of the quotas."""
    return listed([str(quota) for quota in quotas])


def listed(items: Sequence[str]) -> str:
    """The first items, and how many more there are."""
    shown = ", ".join(items[:_MOST_LISTED])
    more = len(items) - _MOST_LISTED
    return f"{shown} and {more} more" if more > 0 else shown


def bounded(message: str) -> str:
    """``message``, cut to :data:`LONGEST`."""
    return message if len(message) <= LONGEST else message[: LONGEST - 3] + "..."
