"""What happens to kubelet's cgroups, as it happens: inotify on kubepods and all below.

The kernel tells of cgroups made and removed and of files written; it tells nothing of
pages charged or given back. A directory is watched first and listed then, so that what
is made in between is seen at least once; every event says "look again", so seeing it
twice does no harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from asyncinotify import Event, InitFlags, Inotify, Mask

from hugetlb_quota.node import kubepods
from hugetlb_quota.node.host import UnusableHost
from hugetlb_quota.node.kubepods import Parents, PodCgroup

logger = logging.getLogger(__name__)

_LEVEL: Final = Mask.CREATE | Mask.DELETE | Mask.ONLYDIR
#: MODIFY comes for every write(2) to a file of the cgroup, whoever writes.
_POD: Final = _LEVEL | Mask.MODIFY
#: Full-sized events read at once; the rest waits in the kernel.
_READ: Final = 64
#: Events looked at before what came of them is told, at most.
_BATCH: Final = 512


class NoInotify(UnusableHost):
    """The kernel gives no inotify instance."""

    def __init__(self, error: OSError) -> None:
        super().__init__(
            f"inotify can't be used on this host ({error.strerror}): all instances of this user"
            " are taken; raise the sysctl fs.inotify.max_user_instances."
        )


@dataclass(frozen=True, slots=True)
class Made:
    """A pod's cgroup was just made, and is not watched yet; :class:`Changed` follows.

    Of many that are made at once all are told of so before the first is looked at.
    """

    pod: PodCgroup


@dataclass(frozen=True, slots=True)
class Changed:
    """A pod's cgroup is new, has a new container, or one of its limits was written."""

    pod: PodCgroup


@dataclass(frozen=True, slots=True)
class Populated:
    """Processes came to a pod's cgroup or the last one left it, or a container's is gone."""

    pod: PodCgroup


@dataclass(frozen=True, slots=True)
class Removed:
    """A pod's cgroup is gone."""

    pod: PodCgroup


@dataclass(frozen=True, slots=True)
class Overflowed:
    """Events were lost; everything was looked at anew, and may have changed."""


Happening = Made | Changed | Populated | Removed | Overflowed


def _first(due: dict[Happening, None]) -> Happening:
    happening = next(iter(due))
    del due[happening]
    return happening


class KubepodsWatcher:
    """Follows the pods below ``parents``; a context manager, and iterable once entered.

    :param parents: where kubepods is or will be; one that is not there yet is waited for, as
        long as the directory above it is. More are looked for at each scan, and when a slice
        is made in one of them.
    """

    def __init__(self, parents: Parents) -> None:
        self._parents = parents
        self._pods: dict[Path, PodCgroup] = {}
        #: Of kubepods and each QoS level the place below its parent.
        self._levels: dict[Path, str] = {}

    def __enter__(self) -> Self:
        try:
            self._inotify = Inotify(flags=InitFlags.CLOEXEC, cache_size=_READ)
        except OSError as error:
            raise NoInotify(error) from error
        self._inotify.sync_timeout = 0  # sync_get() does not wait
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inotify.close()

    @property
    def pods(self) -> tuple[PodCgroup, ...]:
        """The pod cgroups that are known, in the order in which they were found."""
        return tuple(self._pods.values())

    @property
    def roots(self) -> tuple[Path, ...]:
        """Every kubepods that was found, also where it is gone."""
        return tuple(path for path in self._levels if kubepods.is_kubepods(path.name))

    def scan(self) -> list[Happening]:
        """Watch and list everything; what is new or gone since the last time.

        The answer to lost events, and the first thing to do.
        """
        return list(self.scan_by_pod())

    def scan_by_pod(self) -> Iterator[Happening]:
        """The same, a little at a time: events may be told in between."""
        for path, pod in list(self._pods.items()):
            if not path.is_dir() and self._pods.pop(path, None) is not None:
                yield Removed(pod)
        self._parents.search()
        for parent in self._parents:
            if self._watch(parent.parent, _LEVEL):
                yield from self._enter_parent(parent)

    async def __aiter__(self) -> AsyncIterator[Happening]:
        """What happens from now on; call :meth:`scan` first."""
        events, due = deque[Event](), dict[Happening, None]()
        told = 0
        while True:
            new = [] if events or due else [await self._inotify.get()]
            while len(new) < _BATCH and (event := self._inotify.sync_get()) is not None:
                new.append(event)
            for event in new:
                if (pod := self._new_pod(event)) is not None:
                    yield Made(pod)
            events.extend(new)
            # One step at a time: a pod made meanwhile waits for no more than that.
            if events and told < _BATCH:
                told += 1
                for happening in self._tell(events.popleft()):
                    # Of what happens to a pod more than once the last tells of all.
                    due.pop(happening, None)
                    due[happening] = None
            else:
                told = 0
                if due:
                    yield _first(due)
                await asyncio.sleep(0)

    def _new_pod(self, event: Event) -> PodCgroup | None:
        """The pod of which ``event`` says that its cgroup was made."""
        watch, name = event.watch, event.name
        if watch is None or name is None or Mask.CREATE not in event.mask:
            return None
        level = self._levels.get(watch.path)
        if level is None or Mask.ISDIR not in event.mask:
            return None
        place = kubepods.place(f"{level}/{name}")
        if place is None or place.pod is None:
            return None
        return PodCgroup(place.pod, place.qos, watch.path / name)

    def _tell(self, event: Event) -> list[Happening]:
        if Mask.Q_OVERFLOW in event.mask:
            logger.warning("The kernel dropped inotify events; looking at every pod again.")
            return [*self.scan(), Overflowed()]
        watch, name = event.watch, event.name
        if watch is None:
            return []
        if name is None:  # IGNORED, when it is gone, or about a file that is watched itself
            return self._populated(watch.path.parent) if Mask.MODIFY in event.mask else []
        path = watch.path / name
        if Mask.ISDIR in event.mask:
            return self._gone(path) if Mask.DELETE in event.mask else self._made(path)
        # Only limits: hugetlb's events and procs files change with every fault and fork.
        if Mask.MODIFY in event.mask and name.suffix == ".max" and "hugetlb." in name.name:
            return self._changed(watch.path)
        return []

    def _made(self, path: Path) -> list[Happening]:
        if path in self._parents:
            return list(self._enter_parent(path))
        if kubepods.is_slice(path.name) and path.parent in self._parents:
            return self._search()
        if (place := self._place(path)) is None:
            return []
        if place.pod is None:
            return list(self._enter_level(path))
        if place.container is None:
            return self._enter_pod(PodCgroup(place.pod, place.qos, path))
        self._watch(path, _POD)
        return self._changed(path)

    def _gone(self, path: Path) -> list[Happening]:
        pod = self._pods.pop(path, None)
        return self._populated(path.parent) if pod is None else [Removed(pod)]

    def _populated(self, path: Path) -> list[Happening]:
        pod = self._pods.get(path)
        return [] if pod is None else [Populated(pod)]

    def _changed(self, path: Path) -> list[Happening]:
        """Tell of the pod that the cgroup ``path`` is of: it, its parent or the one above."""
        for cgroup in (path, path.parent, path.parent.parent):
            if (pod := self._pods.get(cgroup)) is not None:
                return [Changed(pod)]
        return []

    def _search(self) -> list[Happening]:
        """What is in slices that are new, and in those made in them before they were watched."""
        happenings: list[Happening] = []
        while new := self._parents.search():
            for parent in new:
                happenings += self._enter_parent(parent)
        return happenings

    def _enter_parent(self, parent: Path) -> Iterator[Happening]:
        if self._watch(parent, _LEVEL):
            for path in kubepods.subdirectories(parent):
                if kubepods.is_kubepods(path.name):
                    yield from self._enter_level(path)

    def _enter_level(self, level: Path) -> Iterator[Happening]:
        """``level`` is kubepods or a QoS level: what is in it are levels and pods."""
        if self._watch(level, _LEVEL):
            for parent in self._parents:
                if level.is_relative_to(parent):
                    self._levels[level] = str(level.relative_to(parent))
            for path in kubepods.subdirectories(level):
                place = self._place(path)
                if place is None:
                    continue
                if place.pod is None:
                    yield from self._enter_level(path)
                else:
                    yield from self._enter_pod(PodCgroup(place.pod, place.qos, path))

    def _enter_pod(self, pod: PodCgroup) -> list[Happening]:
        if not self._watch(pod.path, _POD):
            return []
        # The kernel tells of its own changes to a file only where its inode is in memory
        # (kernfs_notify_workfn); the watch keeps it there. It comes when the first process
        # enters and when the last one leaves.
        self._watch(pod.path / "cgroup.events", Mask.MODIFY)
        for container in kubepods.containers(pod):
            self._watch(container.path, _POD)
        # Told of again on a rescan: its containers may be new.
        self._pods[pod.path] = pod
        return [Changed(pod)]

    def _place(self, path: Path) -> kubepods.Place | None:
        # Only what is right below a parent: a foreign tree that happens to hold a
        # directory named kubepods is not ours.
        for parent in self._parents:
            if path.is_relative_to(parent):
                below = path.relative_to(parent)
                if below.parts and kubepods.is_kubepods(below.parts[0]):
                    return kubepods.place(str(below))
        return None

    def _watch(self, path: Path, mask: Mask) -> bool:
        """Whether ``path`` is a directory, which is watched from now on."""
        try:
            self._inotify.add_watch(path, mask)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            # ENOSPC: out of watches. What is below is listed all the same, and the
            # next full pass sees what no event told.
            logger.warning(
                "%s can't be watched (%s), only looked at now and then;"
                " raise the sysctl fs.inotify.max_user_watches.",
                path,
                error.strerror,
            )
        return True
