"""A reservation, and the one place that knows how its line is written.

A quota's status holds reservations as an atomic list of strings. A list of objects makes
a PUT twenty times slower at 800 reservations, and the charge is the write.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

from hugetlb_quota import quantity
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.page_size import RESOURCE_PREFIX, PageSize

#: How long a create may be under way after admission, unless the programs are told: the API
#: server's own limit on a request (kube-apiserver --request-timeout).
RESERVATION_LIFETIME: Final = timedelta(seconds=60)
#: How many bytes the reservations of one quota may have. etcd refuses a request above
#: 1.5 MiB (--max-request-bytes); the rest is for annotations, managedFields and the
#: remaining status.
LARGEST_RESERVATIONS: Final = 1024**2
#: The seventh word of an identity, in place of a node's name: the pod is bound to none.
UNBOUND: Final = "-"
#: The same: the pod was never seen, and an agent that is away may yet tell of it.
SOMEWHERE: Final = "?"
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_WORD: Final = re.compile(r"[!-~]{1,128}")
_PLAIN: Final = "/-._~:"


class MalformedReservation(ValueError):
    """A line that is no reservation."""

    def __init__(self, line: str) -> None:
        super().__init__(f"{line[:200]!r} is no reservation.")
        self.line = line


class ReservationId(NamedTuple):
    """Which request reserved, for which pod (or moving quota)."""

    uid: str
    request: str


@dataclass(frozen=True, slots=True)
class Reservation:
    """A charge admitted for a pod that is not yet counted.

    ``uid`` identifies the pod, ``pod`` is its ``namespace/name``. Until ``expires``
    the API request that creates the pod may still be under way. ``request``: the UID of
    the admission request that reserved. ``since``: the resourceVersion of the pod that the
    request changes, 0 when it creates one; the generation of a quota that moves.
    ``counted``: a node's name, :data:`UNBOUND` or :data:`SOMEWHERE` when the line is a mere
    identity: the pod's charge is counted elsewhere, and here it is kept who is to pay for
    what the node may yet tell of it. "" while the charge counts here.
    ``text``: the line it was read from, with what a newer release may have added.
    """

    uid: str
    pod: str
    charge: Charge
    expires: datetime
    request: str = ""
    since: int = 0
    counted: str = ""
    text: str = field(default="", compare=False, repr=False)

    @property
    def id(self) -> ReservationId:
        """What tells it from every other, also of the same pod."""
        return ReservationId(self.uid, self.request)

    @property
    def line(self) -> str:
        """As it stands in the status."""
        return self.text or " ".join(
            (
                self.uid,
                quote(self.pod, safe=_PLAIN),
                ",".join(f"{size}:{quantity.render(n)}" for size, n in self.charge.items()) or "-",
                _render_time(self.expires),
                self.request or "-",
                str(self.since),
                *filter(None, (self.counted,)),
            )
        )

    def as_identity(self, counted: str) -> Reservation:
        """The same as an identity on the node ``counted``; what a newer release added goes."""
        if counted == self.counted:
            return self
        return replace(self, counted=counted, text="")


def is_word(text: str) -> bool:
    """Whether ``text`` can stand in a line as an identity: printable ASCII without spaces."""
    return _WORD.fullmatch(text) is not None


@lru_cache(maxsize=16384)
def parse(line: str) -> Reservation:
    """The reservation that ``line`` is. Pure, and each line is read thousands of times.

    :raises MalformedReservation: when it is none.
    """
    words = line.split(" ")
    try:
        uid, pod, charge, expires, request, since, *further = words
        return Reservation(
            uid=uid,
            pod=unquote(pod),
            charge=_parse_charge(charge),
            expires=datetime.strptime(expires, _TIME).replace(tzinfo=UTC),
            request="" if request == "-" else request,
            since=int(since),
            counted=further[0] if further else "",
            text=line,
        )
    except ValueError as error:
        raise MalformedReservation(line) from error


def parse_all(lines: Any) -> tuple[tuple[Reservation, ...], tuple[str, ...]]:
    """What ``status.reservations`` holds: the reservations, and the lines that are none."""
    read: list[Reservation] = []
    unreadable: list[str] = []
    for line in lines if isinstance(lines, list) else () if lines is None else [lines]:
        text = line if isinstance(line, str) else json.dumps(line)
        try:
            read.append(parse(text))
        except MalformedReservation:
            unreadable.append(text)
    return tuple(read), tuple(unreadable)


def _parse_charge(text: str) -> Charge:
    if text == "-":
        return Charge()
    amounts: dict[PageSize, int] = {}
    for part in text.split(","):
        size, colon, amount = part.partition(":")
        if not colon:
            raise ValueError(text)
        amounts[PageSize.from_resource(RESOURCE_PREFIX + size)] = quantity.parse_sum(amount)
    return Charge(amounts)


def _render_time(moment: datetime) -> str:
    # Up to a full second: a reservation must not end early.
    moment = moment.astimezone(UTC)
    if moment.microsecond:
        moment = moment.replace(microsecond=0) + timedelta(seconds=1)
    return moment.strftime(_TIME)
