"""Settling accounts: what dead pods left, brought to the total that the kernel counts.

The kernel tells one number for all dead pods together: what is charged to kubepods and to
no pod in it. It is exact, so what is kept for each must always add up to it. What each
left is known for certain where its cgroup was read after its last process had gone; where
that was missed, the total tells, unless several were missed at once.

Everything here is of one page size, in bytes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Owner = TypeVar("Owner", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Claim(Generic[Owner]):
    """A pod that may have left something since the last settlement.

    ``charge`` is what it held when it was last looked at. ``certain``: no process was in
    it any more then, so that is what it left. ``limit``: the most it can have left.
    """

    owner: Owner
    charge: int
    certain: bool
    limit: int


@dataclass(frozen=True, slots=True)
class Settled(Generic[Owner]):
    """What everyone is charged from now on.

    ``held`` by owner, without those that hold nothing, and ``stray``, left by nobody that
    is known: together the kernel's total. ``guessed``: how much of it may be another's.
    """

    held: Mapping[Owner, int]
    stray: int
    guessed: int


def settle(
    held: Mapping[Owner, int], stray: int, claims: Sequence[Claim[Owner]], total: int
) -> Settled[Owner]:
    """Take in ``claims``, and bring it all to ``total``.

    :param held: what each dead pod is charged already, longest dead first.
    :param claims: likeliest first; an owner may be in ``held`` too, of a former life.

    What is found beyond the charges known goes to claims that are not certain, then to
    those that are, each up to its limit, and what is left is stray. What is missing is
    taken from claims that are not certain, for a pod may have given back much with its
    last process; then something was freed of which no event told: from what is stray,
    so that no quota is charged too little; at last from those longest dead.
    """
    sheet = _Sheet(held, stray)
    for claim in claims:
        sheet.add(claim.owner, claim.charge)
    uncertain = [claim for claim in claims if not claim.certain]
    certain = [claim for claim in claims if claim.certain]
    beyond = total - sheet.total
    if beyond > 0:
        for group in (uncertain, certain):
            beyond -= sheet.raise_each(group, beyond)
        sheet.stray += beyond
    elif beyond < 0:
        missing = -beyond
        missing -= sheet.lower_each({claim.owner: claim.charge for claim in uncertain}, missing)
        sheet.free(missing)
    return sheet.settled()


class _Sheet(Generic[Owner]):
    """The accounts while they are settled."""

    def __init__(self, held: Mapping[Owner, int], stray: int) -> None:
        self.held = dict(held)
        self.stray = stray
        self.guessed = 0

    @property
    def total(self) -> int:
        return sum(self.held.values()) + self.stray

    def add(self, owner: Owner, charge: int) -> None:
        self.held[owner] = self.held.get(owner, 0) + charge

    def raise_each(self, claims: Sequence[Claim[Owner]], beyond: int) -> int:
        """Give up to ``beyond`` to ``claims`` in turn, within their limits; how much it was."""
        room = {claim.owner: max(0, claim.limit - claim.charge) for claim in claims}
        given = 0
        for owner, most in room.items():
            share = min(most, beyond - given)
            self.add(owner, share)
            given += share
        if sum(1 for most in room.values() if most) > 1:
            self.guessed += given
        return given

    def lower_each(self, most: Mapping[Owner, int], missing: int) -> int:
        """Take up to ``missing`` from the owners in turn, from none above ``most``."""
        taken = 0
        for owner, charge in most.items():
            share = min(charge, missing - taken)
            self.held[owner] -= share
            taken += share
        if 0 < taken < sum(most.values()) and sum(1 for charge in most.values() if charge) > 1:
            self.guessed += taken
        return taken

    def free(self, missing: int) -> None:
        """Take ``missing``, which somebody's files held that are gone."""
        holders = sum(1 for charge in self.held.values() if charge) + bool(self.stray)
        if holders > 1:
            self.guessed += missing
        from_stray = min(self.stray, missing)
        self.stray -= from_stray
        missing -= from_stray
        for owner, charge in self.held.items():
            share = min(charge, missing)
            self.held[owner] -= share
            missing -= share

    def settled(self) -> Settled[Owner]:
        held = {owner: charge for owner, charge in self.held.items() if charge}
        return Settled(held, self.stray, min(self.guessed, sum(held.values()) + self.stray))
