"""The ledger: what every pod of the node is charged in fact, and what the gone ones left.

Fed with what the kernel shows; it adds up to the kernel's totals always, and is in memory
(agent/memory.py) before anybody may report it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.charge_list import FileKey
from hugetlb_quota.accounting.lives import former_life, pod_of, share_out
from hugetlb_quota.accounting.settlement import Claim, Files, Settled, settle
from hugetlb_quota.accounting.volume import Volume
from hugetlb_quota.agent.memory import Account, Memory, NotRemembered, RememberedFile, State
from hugetlb_quota.page_size import PageSize

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """What the API tells of a pod: its name, the quotas governing it, what it may use.

    ``over``: finished or deleted. ``volumes``: those that can be on a hugetlbfs. ``missed``:
    that only the controller told of, since it came and went while no agent ran.
    """

    namespace: str
    name: str
    quotas: tuple[str, ...]
    demand: Charge
    over: bool
    volumes: tuple[Volume, ...] = ()
    missed: bool = False


class Evidence(Protocol):
    """What is known of files; an owner is a pod's UID, or a former life of it."""

    def charge_of(self, uid: str) -> Charge:
        """What this owner is charged for in files."""
        ...

    def move(self, owner: str, to: str) -> None:
        """Charge ``to`` for everything that ``owner`` is charged for."""
        ...


#: Pods named in a sentence; the others are counted.
_NAMED: Final = 5
_NAMELESS: Final = Known("", "", (), NOTHING, over=False)


class Ledger:
    """Accounts by the UID in the name of a pod's cgroup.

    One UID can have two: kubelet may make a cgroup anew after one of the same name is gone.
    A pod that came under other quotas has one more for what it had filled in files by then:
    that of a former life, which is a part of the pod's own until its cgroup is gone.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        remembered = memory.remembered
        accounts = remembered.accounts if remembered else ()
        past = (State.GONE, State.FORMER)
        self._present = {each.uid: each for each in accounts if each.state not in past}
        self._former = {each.uid: each for each in accounts if each.state is State.FORMER}
        self._gone = {each.uid: each for each in accounts if each.state is State.GONE}
        self._stray = remembered.stray if remembered else NOTHING
        self._guessed = remembered.guessed if remembered else NOTHING
        self._unexplained = NOTHING
        self._saved: dict[tuple[str, bool], Account] = {_key(each): each for each in accounts}
        self._populated = set[str]()
        self._begins = remembered is None
        self._unsaved = ""

    # What happens

    def adopt(self, last: Mapping[str, Any]) -> None:
        """Begin with the ``status`` of the node's last report, if nothing is remembered."""
        if not self._begins:
            return
        now = datetime.now(UTC)
        for row in last.get("retained") or ():
            quotas = tuple(row["quotas"])
            charge = Charge.from_resources(row["charge"])
            if quotas:
                # Which pods left it is not in the report. No UID has a comma.
                uid = ",".join(("", *quotas))
                self._gone[uid] = Account(uid, "", "", quotas, NOTHING, charge, State.GONE, now)
        for pod in last.get("pods") or ():
            demand, charge = (Charge.from_resources(pod.get(k)) for k in ("charge", "inUse"))
            self._present.setdefault(
                pod["uid"],
                Account(
                    *(pod["uid"], pod["namespace"], pod["name"], tuple(pod["quotas"])),
                    *(demand, charge, State.LIVE, now),
                ),
            )

    def seen(self, uid: str, charge: Charge, *, empty: bool) -> None:
        """A pod's cgroup is there and has reserved ``charge``.

        ``empty``: no process was in it when that was read.
        """
        before = self._present.get(uid) or _account(uid, _NAMELESS)
        if not empty:
            self._populated.add(uid)
        # Kubelet makes the cgroup first and the processes later: that is no end.
        ended = empty and (charge or uid in self._populated)
        state = State.EMPTY if ended else State.LIVE
        self._present[uid] = replace(before, charge=charge.without_zeros(), state=state)

    def governed_anew(self, known: Mapping[str, Known]) -> frozenset[str]:
        """The pods that other quotas governed until now."""
        return frozenset(
            uid
            for uid, each in self._present.items()
            # Where none did, nobody was charged with whom it could stay.
            if uid in known
            and each.quotas
            and each.quotas != known[uid].quotas
            # What the controller tells of one that is gone is no news of one that is known.
            and not known[uid].missed
        )

    def govern(self, known: Mapping[str, Known], files: Evidence | None = None) -> None:
        """Take over what the API tells now, also of those that ended before it told anything.

        What a pod is charged for in files stays with the quotas that governed it until now.
        """
        if files is not None:
            for uid in self.governed_anew(known):
                if in_files := files.charge_of(uid):
                    files.move(uid, self._begin_anew(self._present[uid]))
                    logger.info(
                        "What pod %s filled, %s, stays with %s; it is governed by %s now.",
                        self._present[uid].pod,
                        _text(in_files),
                        ", ".join(self._present[uid].quotas),
                        ", ".join(known[uid].quotas) or "none",
                    )
        for uid, each in self._present.items():
            # What the API itself has told is not replaced by what the controller tells of it.
            if uid in known and not (each.name and known[uid].missed):
                self._present[uid] = replace(each, **_told(known[uid]))
        for uid, each in self._gone.items():
            if uid in known and not each.name:
                self._gone[uid] = replace(each, **_told(known[uid]))
        self._measure(files)

    def _begin_anew(self, pod: Account) -> str:
        """The account of the life that ``pod`` had under its quotas until now."""
        for former in self._former_of(pod.uid):
            if former.quotas == pod.quotas:
                return former.uid
        owner = former_life(pod.uid, self._former.keys() | self._gone.keys())
        now = datetime.now(UTC)
        self._former[owner] = replace(
            pod, uid=owner, charge=NOTHING, state=State.FORMER, since=now, in_files=NOTHING
        )
        return owner

    def _former_of(self, uid: str) -> tuple[Account, ...]:
        return tuple(each for each in self._former.values() if pod_of(each.uid) == uid)

    def _measure(self, files: Evidence | None) -> None:
        """See what former lives have still in files, and close the accounts of the others."""
        if files is None:
            return
        for pod in {pod_of(owner): None for owner in self._former}:
            account = self._present.get(pod)
            if account is None:
                continue
            in_files = {each.uid: files.charge_of(each.uid) for each in self._former_of(pod)}
            parts, _ = share_out(account.charge, in_files)
            for owner, filled in in_files.items():
                if filled:
                    self._former[owner] = replace(self._former[owner], charge=parts[owner])
                else:
                    del self._former[owner]

    def _lives(self, ended: Account, files: Evidence | None) -> tuple[Account, ...]:
        """``ended``, and the former lives of it, each with its part of what it held."""
        former = self._former_of(ended.uid)
        in_files = {
            each.uid: each.charge if files is None else files.charge_of(each.uid) for each in former
        }
        parts, rest = share_out(ended.charge, in_files)
        return (
            # A former life can't have left more than it has in files.
            *(
                replace(each, charge=parts[each.uid], demand=parts[each.uid], state=ended.state)
                for each in former
            ),
            replace(ended, charge=rest, demand=ended.demand.beyond(Charge.total(parts.values()))),
        )

    def settle(
        self,
        present: Collection[str],
        known: Mapping[str, Known],
        left: Mapping[PageSize, int] | None,
        files: Evidence | None = None,
        *,
        patient: bool = False,
    ) -> None:
        """End the accounts of the pods whose cgroup is not ``present`` any more.

        :param known: what the API tells of each pod, by the UID in its cgroup's name.
        :param left: what the kernel counts for all dead pods; None: it can't be told, and
            what each held when it was last seen is what it left.
        :param files: what is known of files; None: nothing is.
        :param patient: files may be behind the kernel's total: see :attr:`unexplained`.
        """
        self.govern(known, files)
        bodies = [each for uid, each in self._present.items() if uid not in present]
        # Their cgroups came and went unseen, if at all.
        unseen = [
            replace(_account(uid, each), state=State.GONE)
            for uid, each in known.items()
            if uid not in present and uid not in self._present and uid not in self._gone
        ]
        missed = [self._presume(each) for each in unseen if known[each.uid].missed]
        unseen = [each for each in unseen if not known[each.uid].missed]
        # What is found at the beginning was left before, by whomever.
        others = [*(() if self._begins else unseen), *missed]
        ended = [life for each in bodies for life in self._lives(each, files)]
        accounts = {each.uid: self._heir(each) for each in ended}
        accounts |= {each.uid: each for each in (*unseen, *missed)}
        accounts |= {uid: each for uid, each in self._gone.items() if uid not in accounts}
        if left is None:
            charges = {each.uid: each.charge for each in (*ended, *others)}
            for uid, each in self._gone.items():
                charges[uid] = each.charge + charges.get(uid, NOTHING)
        else:
            charges = self._take_over(self._settled([*ended, *others], left, files, patient), left)
        for each in ended:
            self._present.pop(each.uid, None)
            self._former.pop(each.uid, None)
        self._populated &= self._present.keys()
        self._gone = {
            uid: replace(account, charge=charges.get(uid, NOTHING).without_zeros())
            for uid, account in sorted(accounts.items(), key=lambda item: item[1].since)
            if charges.get(uid) or (uid in known and (known[uid].over or uid in self._gone))
        }
        self._measure(files)
        self._begins = False

    def note_files(self, files: Evidence) -> None:
        """What is in files of what gone pods left: what is not there later was given back."""
        self._gone = {
            uid: replace(each, in_files=files.charge_of(uid)) for uid, each in self._gone.items()
        }

    def reparent(self, heirs: Mapping[str, str | None]) -> None:
        """Charge what pods left under a quota to its heir; None: to nobody in its place.

        All of a quota's at once: :meth:`save` writes it in one transaction.
        """
        for accounts in (self._gone, self._former):
            for uid, each in accounts.items():
                if heirs.keys() & set(each.quotas):
                    heads = {heirs.get(quota, quota) for quota in each.quotas}
                    quotas = tuple(sorted(head for head in heads if head is not None))
                    accounts[uid] = replace(each, quotas=quotas)

    def end_certain(
        self,
        present: Collection[str],
        known: Mapping[str, Known],
        files: Evidence | None = None,
    ) -> None:
        """The same where the kernel's total can't be told just now.

        Only those end that were seen empty; the total makes up for it at the next look.
        """
        self.govern(known, files)
        ended = [
            each
            for uid, each in self._present.items()
            if uid not in present and each.state is State.EMPTY
        ]
        for body in ended:
            del self._present[body.uid]
            for each in self._lives(body, files):
                self._former.pop(each.uid, None)
                charge = each.charge + self.left_by(each.uid)
                self._gone[each.uid] = replace(self._heir(each), charge=charge)

    def _presume(self, missed: Account) -> Account:
        """The same, taken for the one that left what is stray, as far as it can have."""
        share = self._stray.within(missed.demand).without_zeros()
        self._stray = self._stray.beyond(share).without_zeros()
        return replace(missed, charge=share, presumed=True)

    def _heir(self, ended: Account) -> Account:
        """The account of what ``ended`` left, added to what it left in a former life."""
        before = self._gone.get(ended.uid)
        since = before.since if before else datetime.now(UTC)
        return replace(ended, state=State.GONE, since=since)

    def _settled(
        self,
        candidates: Sequence[Account],
        left: Mapping[PageSize, int],
        files: Evidence | None,
        patient: bool,
    ) -> dict[PageSize, Settled[str]]:
        held = {uid: each.charge for uid, each in self._gone.items()}
        uids = {*self._gone, *(each.uid for each in candidates)}
        before = {uid: each.in_files for uid, each in self._gone.items()}
        now = {uid: files.charge_of(uid) for uid in uids} if files is not None else {}
        sizes = {*left, *self._stray, *Charge.total(held.values())}
        sizes |= {size for each in candidates for size in each.charge}
        return {
            size: settle(
                _of(size, held),
                self._stray.of(size),
                [
                    Claim(
                        each.uid,
                        each.charge.of(size),
                        certain=each.state is State.EMPTY,
                        limit=each.demand.of(size),
                    )
                    for each in candidates
                ],
                left.get(size, 0),
                Files(_of(size, now), _of(size, before)) if files is not None else None,
                patient=patient,
            )
            for size in sizes
        }

    def _take_over(
        self, sheet: Mapping[PageSize, Settled[str]], left: Mapping[PageSize, int]
    ) -> dict[str, Charge]:
        charges: dict[str, dict[PageSize, int]] = {}
        guessed: dict[PageSize, int] = {}
        for size, settled in sheet.items():
            for uid, amount in settled.held.items():
                charges.setdefault(uid, {})[size] = amount
            if len(settled.held) + bool(settled.stray) > 1:
                doubt = self._guessed.of(size) + settled.guessed
                guessed[size] = min(left.get(size, 0), doubt)
        stray = {size: settled.stray for size, settled in sheet.items()}
        self._stray = Charge(stray).without_zeros()
        self._guessed = Charge(guessed).without_zeros()
        unexplained = {size: settled.unexplained for size, settled in sheet.items()}
        self._unexplained = Charge(unexplained).without_zeros()
        return {uid: Charge(amounts) for uid, amounts in charges.items()}

    def save(self, files: Mapping[FileKey, RememberedFile | None] | None = None) -> bool:
        """Write down what changed since the last time; it may be reported after that.

        A write that fails is made up for by the next: see :attr:`problems`.

        :param files: what changed of files, which is written with it or not at all: a former
            life is in both, or in none.
        """
        accounts = (*self._present.values(), *self._former.values(), *self._gone.values())
        now = {_key(each): each for each in accounts}
        changed = [each for key, each in now.items() if self._saved.get(key) != each]
        removed = [each for key, each in self._saved.items() if key not in now]
        try:
            self._memory.save(changed, removed, self._stray, self._guessed, files)
        except NotRemembered as error:
            if self._unsaved != str(error):
                logger.error("%s", error)
            self._unsaved = str(error)
            return False
        self._unsaved, self._saved = "", now
        return True

    # What is there

    @property
    def gone(self) -> tuple[Account, ...]:
        """What pods left whose cgroups are gone, the longest gone first."""
        return tuple(each for each in self._gone.values() if each.charge)

    @property
    def former(self) -> tuple[Account, ...]:
        """What pods filled whose cgroups are there, under quotas that govern them no more."""
        return tuple(each for each in self._former.values() if each.charge)

    @property
    def stray(self) -> Charge:
        """What was left by nobody that is known."""
        return self._stray

    @property
    def guessed(self) -> Charge:
        """How much may be another's: the files and the kernel differed, or nobody saw it."""
        presumed = Charge.total(each.charge for each in self._gone.values() if each.presumed)
        left = Charge.total(each.charge for each in self.gone) + self._stray
        return (self._guessed + presumed).within(left).without_zeros()

    @property
    def unexplained(self) -> Charge:
        """How much less the kernel counts than is charged, until files tell who gave it back."""
        return self._unexplained

    @property
    def pods(self) -> int:
        """How many pods have a cgroup."""
        return len(self._present)

    def account(self, uid: str) -> Account | None:
        """Of the pod of this UID: as long as its cgroup is there that one, then what it left.

        Or of what stands for a former life of one.
        """
        return self._present.get(uid) or self._former.get(uid) or self._gone.get(uid)

    def by_life(self, held: Mapping[str, Charge]) -> dict[str, Charge]:
        """What the cgroups of pods have, by UID, shared out among their lives."""
        shared = dict(held)
        for former in self._former.values():
            pod = pod_of(former.uid)
            if pod in shared:
                shared[former.uid] = former.charge
                shared[pod] = shared[pod].beyond(former.charge)
        return shared

    def lives(self, uid: str) -> tuple[str, ...]:
        """The owners that stand for the pod of this UID whose cgroup is there."""
        return (uid, *(each.uid for each in self._former_of(uid)))

    def left_by(self, uid: str) -> Charge:
        """What the pod left whose cgroup of this UID is gone."""
        account = self._gone.get(uid)
        return account.charge if account else NOTHING

    def is_settled(self, uid: str) -> bool:
        """Whether the pod of this UID is gone, and what it left is charged."""
        return uid not in self._present and uid in self._gone

    @property
    def problems(self) -> tuple[str, ...]:
        """Why it may not be right in every part, a sentence each."""
        found = []
        if self._stray:
            found.append(
                f"{_text(self._stray)} are left in files by pods that nothing is known of:"
                " they ended before this agent first ran; they count in no quota."
            )
        if self._guessed:
            found.append(
                f"{_text(self._guessed)} may be charged to another of the pods that left files;"
                " the total is right."
            )
        if presumed := [each for each in self.gone if each.presumed]:
            found.append(
                f"{_text(Charge.total(each.charge for each in presumed))} are taken to be left by"
                f" {_names(presumed)}, which came and went while no agent ran here; they may be"
                " another pod's."
            )
        if self._memory.set_aside:
            found.append(
                f"What was remembered was damaged and is set aside as {self._memory.set_aside};"
                " it was rebuilt from the last report."
            )
        if self._unsaved:
            found.append(self._unsaved)
        return tuple(found)


def _of(size: PageSize, charges: Mapping[str, Charge]) -> dict[str, int]:
    return {uid: charge.of(size) for uid, charge in charges.items()}


def _key(account: Account) -> tuple[str, bool]:
    return account.uid, account.state is State.GONE


def _account(uid: str, known: Known) -> Account:
    now = datetime.now(UTC)
    return Account(uid, **_told(known), charge=NOTHING, state=State.LIVE, since=now)


def _told(known: Known) -> dict[str, Any]:
    names = ("namespace", "name", "quotas", "demand", "volumes")
    return {name: getattr(known, name) for name in names}


def _names(accounts: Sequence[Account]) -> str:
    more = len(accounts) - _NAMED
    names = ", ".join(each.pod for each in accounts[:_NAMED])
    return f"{names} and {more} more" if more > 0 else names


def _text(charge: Charge) -> str:
    return ", ".join(f"{amount} of {size}" for size, amount in charge.to_resources().items())
