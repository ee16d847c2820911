"""A reservation, and the format of its line in ``status.reservations``.

A quota's status holds reservations as an atomic list of strings. With 800 reservations, a list
of objects makes a PUT twenty times slower, and each charge is one PUT.
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

#: How long after its admission an API request may still write at the latest. kube-apiserver ends
#: every create, update and patch after this time, whatever its --request-timeout
#: (endpoints/handlers/rest.go, ``requestTimeoutUpperBound``). The time begins before the API
#: server asks admission, so admission's own time is part of it.
RESERVATION_LIFETIME: Final = timedelta(seconds=34)
#: ``expires`` of a reservation that a program has watched for its whole life. For a new reservation
#: ``expires`` is always later, because no host's clock shows a time before 1970.
OVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: The largest length of one quota's reservations, in bytes. etcd refuses a request above
#: 1.5 MiB (--max-request-bytes); the rest is for annotations, managedFields and the other
#: status fields.
LARGEST_RESERVATIONS: Final = 1024**2
#: The seventh word of an identity, instead of a node's name: the pod is not bound to a node.
UNBOUND: Final = "-"
#: The same: nobody has seen the pod, and an agent that is down may still report it.
SOMEWHERE: Final = "?"
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_WORD: Final = re.compile(r"[!-~]{1,128}")
_PLAIN: Final = "/-._~:"


class MalformedReservation(ValueError):
    """A line that is not a reservation."""

    def __init__(self, line: str) -> None:
        super().__init__(f"{line[:200]!r} is not a reservation.")
        self.line = line


class ReservationId(NamedTuple):
    """The UIDs of the pod (or of the quota that moves) and of the admission request."""

    uid: str
    request: str


@dataclass(frozen=True, slots=True)
class Reservation:
    """A charge for an admitted pod that is not counted yet, or the identity of a counted pod.

    ``uid``: the pod's UID. ``pod``: the pod's ``namespace/name``. ``expires``: until then, by the
    clock of the replica of admission, the API request that creates the pod may still run; people
    read this time, and earlier releases of the controller; or :data:`OVER`. ``request``: the UID
    of the admission request. ``since``: the resourceVersion of the pod that the request updates,
    0 if the request creates the pod; for a quota that moves, its generation. ``counted``: "" for
    a reservation. For an identity, the name of the pod's node, :data:`UNBOUND` or
    :data:`SOMEWHERE`: the line reserves nothing, and says which quota pays if the node reports
    the pod. ``text``: the line as read, with the words that a newer release may have added.
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
        """The key of this reservation; a pod can have several reservations."""
        return ReservationId(self.uid, self.request)

    @property
    def line(self) -> str:
        """The line in the status."""
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

    @property
    def is_over(self) -> bool:
        """Whether a program has watched this reservation for its whole life."""
        return self.expires == OVER

    def as_over(self) -> Reservation:
        """A copy that says that the life of this reservation is over.

        A copy that differs loses the words that a newer release added.
        """
        return self if self.is_over else replace(self, expires=OVER, text="")

    def as_identity(self, counted: str) -> Reservation:
        """A copy that is an identity with the word ``counted``.

        A copy that differs loses the words that a newer release added.
        """
        if counted == self.counted:
            return self
        return replace(self, counted=counted, text="")


def lifetime(request_timeout: timedelta) -> timedelta:
    """How long a reservation lives at most, if ``request_timeout`` is kube-apiserver's."""
    return min(request_timeout, RESERVATION_LIFETIME)


def is_word(text: str) -> bool:
    """Whether ``text`` can be a word of a line: 1 to 128 characters of printable ASCII."""
    return _WORD.fullmatch(text) is not None


@lru_cache(maxsize=16384)
def parse(line: str) -> Reservation:
    """The reservation that ``line`` describes; cached, because each line is read often.

    :raises MalformedReservation: if ``line`` is not a reservation.
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
    """The reservations in ``status.reservations``, and the lines that are not reservations."""
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
    # Round up to a whole second: a reservation must not end early.
    moment = moment.astimezone(UTC)
    if moment.microsecond:
        moment = moment.replace(microsecond=0) + timedelta(seconds=1)
    return moment.strftime(_TIME)
