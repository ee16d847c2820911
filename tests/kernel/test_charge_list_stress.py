"""Random operations on files: after each, a model knows the owner of every page in the list.

``STRESS_SEED`` repeats a run. ``STRESS_OPERATIONS`` is the number of operations.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hugetlb_quota.node.charge_list import ChargeList
from hugetlb_quota.node.charge_reader import ChargeReader
from tests import seeds
from tests.kernel.charge_reading import equal
from tests.tracking import PAGE, Actor

SEED = seeds.seed("STRESS_SEED")
OPERATIONS = int(os.environ.get("STRESS_OPERATIONS") or 1_500)
FILES, LONGEST, POOL, PODS = 6, 12, 160, 4


@dataclass
class Inode:
    """A file's pages and the charged pod of each, by the kernel's rules (mm/hugetlb.c)."""

    number: int
    size: int = 0
    #: The pod by page: reserved by a shared mapping, or allocated without a reservation.
    reserved: dict[int, str] = field(default_factory=dict)
    allocated: dict[int, str] = field(default_factory=dict)
    #: The pages that are in the file. A reserved page may be missing.
    present: set[int] = field(default_factory=set)
    mappings: int = 0
    linked: bool = True

    def forget(self, pages: set[int]) -> None:
        for page in pages:
            self.reserved.pop(page, None)
            self.allocated.pop(page, None)
            self.present.discard(page)


@dataclass
class Mapping:
    address: int
    start: int
    pages: int
    inode: Inode | None


@dataclass
class Pod:
    """A process, its cgroup, and its mappings."""

    name: str
    cgroup: Path
    actor: Actor
    shared: list[Mapping] = field(default_factory=list)
    private: list[Mapping] = field(default_factory=list)


@dataclass
class Stress:
    dice: random.Random
    folder: Path
    cgroup: Callable[[str], Path]
    actors: ExitStack
    names: dict[str, Inode] = field(default_factory=dict)
    #: All files, also files that are mapped but have no name any more.
    inodes: list[Inode] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)
    born: int = 0
    refused: int = 0

    def start(self) -> None:
        while len(self.pods) < PODS:
            self.born += 1
            name = f"pod{self.born}"
            # Every third cgroup is deeper, like the cgroups of systemd in a container.
            cgroup = self.cgroup(f"{name}/deep/er" if self.born % 3 == 0 else name)
            actor = self.actors.enter_context(Actor(cgroup))
            self.pods.append(Pod(cgroup.name if self.born % 3 else name, cgroup, actor))

    def step(self) -> str:
        """Do a random operation on the kernel and on the model; return its name."""
        operations: list[tuple[int, Callable[[Pod], None]]] = [
            (6, self.map_shared), (3, self.touch), (4, self.unmap), (3, self.map_private),
            (3, self.unmap_private), (3, self.truncate), (2, self.punch), (2, self.allocate),
            (2, self.unlink), (1, self.end),
        ]  # fmt: skip
        [(_, chosen)] = self.dice.choices(operations, [weight for weight, _ in operations])
        chosen(self.dice.choice(self.pods))
        return chosen.__name__

    def range(self) -> tuple[int, int]:
        start = self.dice.randrange(LONGEST)
        return start, self.dice.randint(1, LONGEST - start)

    def open(self, actor: Actor) -> Inode:
        """Open a random file as ``fd``; create the file if it is missing."""
        name = f"file{self.dice.randrange(FILES)}"
        number = actor.do(f"fd = create({str(self.folder / name)!r}); result = os.fstat(fd).st_ino")
        if name not in self.names:
            self.names[name] = Inode(number)
            self.inodes.append(self.names[name])
        assert self.names[name].number == number
        return self.names[name]

    def map_shared(self, pod: Pod) -> None:
        inode, (start, pages) = self.open(pod.actor), self.range()
        try:
            address = pod.actor.do(f"result = map_pages({pages}, SHARED, fd, at={start})")
        except OSError:
            self.refused += 1
            return
        finally:
            pod.actor.do("os.close(fd)")
        inode.size = max(inode.size, start + pages)
        inode.mappings += 1
        for page in range(start, start + pages):
            if page not in inode.allocated:
                inode.reserved.setdefault(page, pod.name)
        pod.shared.append(Mapping(address, start, pages, inode))

    def touch(self, pod: Pod) -> None:
        if not pod.shared:
            return
        mapping = self.dice.choice(pod.shared)
        assert mapping.inode
        page = self.dice.randrange(mapping.start, mapping.start + mapping.pages)
        # A touch beyond the end gives SIGBUS. A touch without a reservation would be a new charge.
        if page < mapping.inode.size and page in mapping.inode.reserved:
            pod.actor.do(f"touch({mapping.address}, {page - mapping.start})")
            mapping.inode.present.add(page)

    def unmap(self, pod: Pod) -> None:
        if pod.shared:
            mapping = pod.shared.pop(self.dice.randrange(len(pod.shared)))
            pod.actor.do(f"unmap({mapping.address}, {mapping.pages})")
            self.release(mapping)

    def release(self, mapping: Mapping) -> None:
        assert mapping.inode
        mapping.inode.mappings -= 1
        self.drop_if_unused(mapping.inode)

    def drop_if_unused(self, inode: Inode) -> None:
        if not inode.linked and not inode.mappings:
            self.inodes.remove(inode)

    def map_private(self, pod: Pod) -> None:
        """Map anonymous memory, or a file. The mapping holds the file but does not change it."""
        inode, (start, pages) = None, self.range()
        flags, rest = "PRIVATE | ANONYMOUS | HUGETLB", ""
        if self.dice.random() < 0.5:
            inode = self.open(pod.actor)
            flags, rest = "PRIVATE", f", fd, at={start}"
        try:
            address = pod.actor.do(f"result = map_pages({pages}, {flags}{rest})")
        except OSError:
            self.refused += 1
            return
        finally:
            if inode:
                pod.actor.do("os.close(fd)")
        if inode:
            inode.mappings += 1
            inode.size = max(inode.size, start + pages)
        pod.private.append(Mapping(address, start, pages, inode))

    def unmap_private(self, pod: Pod) -> None:
        """Unmap the start, the middle or the end of a private mapping, or all of it."""
        if not pod.private:
            return
        mapping = pod.private.pop(self.dice.randrange(len(pod.private)))
        first = self.dice.randrange(mapping.pages)
        last = self.dice.randint(first + 1, mapping.pages)
        pod.actor.do(f"unmap({mapping.address + first * PAGE}, {last - first})")
        for start, end in ((0, first), (last, mapping.pages)):
            if start < end:
                rest = (mapping.address + start * PAGE, mapping.start + start, end - start)
                pod.private.append(Mapping(*rest, mapping.inode))
                if mapping.inode:
                    mapping.inode.mappings += 1
        if mapping.inode:
            self.release(mapping)

    def truncate(self, pod: Pod) -> None:
        inode, size = self.open(pod.actor), self.dice.randrange(LONGEST + 1)
        pod.actor.do(f"os.ftruncate(fd, {size} * PAGE); os.close(fd)")
        if size < inode.size:
            inode.forget(set(range(size, LONGEST)))
        inode.size = size

    def punch(self, pod: Pod) -> None:
        inode, (start, pages) = self.open(pod.actor), self.range()
        pod.actor.do(f"fallocate(fd, {start}, {pages}, PUNCH_HOLE); os.close(fd)")
        # The kernel frees and uncharges pages that are in the file. Reserved pages stay charged.
        inode.forget(inode.present & set(range(start, start + pages)))

    def allocate(self, pod: Pod) -> None:
        inode, start = self.open(pod.actor), self.dice.randrange(LONGEST)
        try:
            pod.actor.do(f"fallocate(fd, {start}, 1)")
        except OSError:
            self.refused += 1
            return
        finally:
            pod.actor.do("os.close(fd)")
        inode.size = max(inode.size, start + 1)
        inode.present.add(start)
        if start not in inode.reserved:
            inode.allocated.setdefault(start, pod.name)

    def unlink(self, pod: Pod) -> None:
        if self.names:
            name = self.dice.choice(sorted(self.names))
            pod.actor.do(f"os.unlink({str(self.folder / name)!r})")
            inode = self.names.pop(name)
            inode.linked = False
            self.drop_if_unused(inode)

    def end(self, pod: Pod) -> None:
        """Kill a pod and remove its cgroup. The pages in files stay."""
        pod.actor.kill()
        self.pods.remove(pod)
        for mapping in (*pod.shared, *pod.private):
            if mapping.inode:
                self.release(mapping)
        for each in (pod.cgroup, *pod.cgroup.parents):
            each.rmdir()
            if each.name == pod.name:
                break
        self.start()

    def expected(self) -> dict[str, object]:
        return {
            "reserved": {i.number: i.reserved for i in self.inodes if i.reserved},
            "allocated": {
                i.number: dict(Counter(i.allocated.values())) for i in self.inodes if i.allocated
            },
            "private": {
                pod.name: pages
                for pod in self.pods
                if (pages := sum(mapping.pages for mapping in pod.private))
            },
        }

    def listed(self, charges: ChargeList, subtree: str) -> dict[str, object]:
        device = self.folder.stat().st_dev
        reserved: dict[int, dict[int, str]] = {}
        allocated: dict[int, dict[str, int]] = {}
        private: Counter[str] = Counter()

        def owner(path: str) -> str | None:
            """Return the pod's name: the first level below the test's cgroup."""
            _, found, rest = path.partition(f"/{subtree}/")
            return rest.split("/")[0] if found else None

        for file in charges.files:
            if file.superblock.device == device and file.regions:
                reserved[file.inode] = {
                    page: owner(region.cgroup.path) or region.cgroup.path
                    for region in file.regions
                    for page in range(region.start, region.end)
                }
            for mapping in file.private:
                if name := owner(mapping.cgroup.path):
                    private[name] += mapping.pages
        for each in charges.unreserved:
            if each.file and each.file[0] == device:
                name = owner(each.cgroup.path) or each.cgroup.path
                allocated.setdefault(each.file[1], {})[name] = each.pages
        return {"reserved": reserved, "allocated": allocated, "private": dict(private)}


@pytest.fixture
def actors() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.timeout(900)
@pytest.mark.parametrize("run", range(2))
async def test_every_page_has_the_expected_owner_after_each_operation(
    reader: ChargeReader,
    cgroup: Callable[[str], Path],
    cgroup_subtree: Path,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    actors: ExitStack,
    run: int,
) -> None:
    pages(POOL)
    stress = Stress(random.Random(f"{SEED}-{run}"), hugetlbfs, cgroup, actors)
    stress.start()
    done: list[str] = []
    while len(done) < OPERATIONS:
        done.append(stress.step())
        charges = await equal(reader, cgroup_subtree)
        listed = stress.listed(charges, cgroup_subtree.name)
        assert listed == stress.expected(), (SEED, run, done[-10:])
    # The important operations have run.
    assert set(done) >= {"map_shared", "punch", "allocate", "end", "unmap_private"}
    assert stress.refused < OPERATIONS / 4
