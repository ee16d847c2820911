"""Settling accounts: what dead pods left, brought to the total that the kernel counts.

The kernel tells one number for all dead pods together: what is charged to kubepods and to
no pod in it. It is exact, so what is kept for each must always add up to it. What each
left is known for certain where its cgroup was read after its last process had gone; where
that was missed, the total tells, unless several were missed at once.

Everything here is of one page size, in bytes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    is known: together the kernel's total, and what is ``unexplained``. ``guessed``: how
    much of it may be another's. ``unexplained``: given back by nobody who can be told;
    for the time being all stay charged.
    """

    held: Mapping[Owner, int]
    stray: int
    guessed: int
    unexplained: int = 0


@dataclass(frozen=True, slots=True)
class Files(Generic[Owner]):
    """How much each is charged for in files, as far as is known.

    ``now``: in those that are there. ``before``: when that was settled last.
    """

    now: Mapping[Owner, int]
    before: Mapping[Owner, int]


def settle(
    held: Mapping[Owner, int],
    stray: int,
    claims: Sequence[Claim[Owner]],
    total: int,
    files: Files[Owner] | None = None,
    *,
    patient: bool = False,
) -> Settled[Owner]:
    """Take in ``claims``, and bring it all to ``total``.

    :param held: what each dead pod is charged already, longest dead first.
    :param claims: likeliest first; an owner may be in ``held`` too, of a former life.
    :param files: None when nothing is known of files.
    :param patient: files may be behind the total: leave unexplained what they don't explain.

    What is found beyond the charges known goes to claims that are not certain, then to
    those that are, each up to its limit, and what is left is stray. What is missing is
    taken from claims that are not certain, for a pod may have given back much with its
    last process; then something was freed: from those whose files are gone or shorter;
    from those who hold what is in no file that is known; from what is stray, so that no
    quota is charged too little; at last from those longest dead.
    """
    now = files.now if files else {}
    sheet = _Sheet(held, stray)
    for claim in claims:
        sheet.add(claim.owner, claim.charge)
    uncertain = [claim for claim in claims if not claim.certain]
    certain = [claim for claim in claims if claim.certain]
    beyond = total - sheet.total
    if beyond > 0:
        in_sight = {each.owner: now.get(each.owner, 0) - sheet.held[each.owner] for each in claims}
        beyond -= sheet.raise_each(in_sight, beyond)
        for group in (uncertain, certain):
            room = {each.owner: each.limit - each.charge for each in group}
            beyond -= sheet.raise_each(room, beyond)
        sheet.stray += beyond
    elif beyond < 0:
        missing = -beyond
        own = {
            each.owner: min(each.charge, sheet.held[each.owner] - now.get(each.owner, 0))
            for each in uncertain
        }
        missing -= sheet.lower_each(own, missing)
        missing -= sheet.lower_each({each.owner: each.charge for each in uncertain}, missing)
        if files is not None:
            lost = {owner: was - now.get(owner, 0) for owner, was in files.before.items()}
            missing -= sheet.lower_each(lost, missing)
            if patient and missing:
                return replace(sheet.settled(), unexplained=missing)
            elsewhere = {owner: charge - now.get(owner, 0) for owner, charge in sheet.held.items()}
            missing -= sheet.lower_each(elsewhere, missing)
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

    def raise_each(self, most: Mapping[Owner, int], beyond: int) -> int:
        """Give up to ``beyond``, to none more than ``most``; how much it was."""
        return self._share_out(most, beyond, 1)

    def lower_each(self, most: Mapping[Owner, int], missing: int) -> int:
        """Take up to ``missing``, from none more than ``most`` and than it has."""
        return self._share_out(
            {owner: min(amount, self.held.get(owner, 0)) for owner, amount in most.items()},
            missing,
            -1,
        )

    def _share_out(self, most: Mapping[Owner, int], amount: int, sign: int) -> int:
        possible = {owner: each for owner, each in most.items() if each > 0}
        done = 0
        for owner, each in possible.items():
            share = min(each, amount - done)
            self.add(owner, sign * share)
            done += share
        if len(possible) > 1 and done < sum(possible.values()):
            self.guessed += done  # some had to be passed over
        return done

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
