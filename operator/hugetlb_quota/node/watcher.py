"""Follows kubelet's cgroups with inotify: reports what happens to kubepods and all pods below.

The kernel reports cgroups that are created and removed, and files that are written. The kernel
reports no charge of pages. The watcher adds a watch to a directory before it lists the directory,
so the watcher sees everything created in between at least once. Each event means "look again", so
an event that comes twice does no harm.
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
#: MODIFY comes for every write(2) to a file of the cgroup, by any process.
_POD: Final = _LEVEL | Mask.MODIFY
#: The number of full-sized events read at once; the others wait in the kernel.
_READ: Final = 64
#: The largest number of inotify events handled before the watcher yields their results.
_BATCH: Final = 512


class NoInotify(UnusableHost):
    """The kernel gives no inotify instance."""

    def __init__(self, error: OSError) -> None:
        super().__init__(
            f"inotify can't be used on this host ({error.strerror}): all instances of this user"
            " are taken; raise the sysctl fs.inotify.max_user_instances."
        )


@dataclass(frozen=True, slots=True)
class Created:
    """A pod's cgroup was just created and is not watched yet; :class:`Changed` follows.

    If many cgroups are created at once, the watcher yields Created for all of them before it
    handles the first.
    """

    pod: PodCgroup


@dataclass(frozen=True, slots=True)
class Changed:
    """A pod's cgroup is new, has a new container, or one of its limits was written."""

    pod: PodCgroup


@dataclass(frozen=True, slots=True)
class Populated:
    """Processes entered a pod's cgroup, the last process left, or a container's cgroup is gone."""

    pod: PodCgroup


@dataclass(frozen=True, slots=True)
class Removed:
    """A pod's cgroup is gone."""

    pod: PodCgroup


@dataclass(frozen=True, slots=True)
class Overflowed:
    """The kernel dropped events. The watcher has scanned everything; any pod may have changed."""


CgroupEvent = Created | Changed | Populated | Removed | Overflowed


def _pop_first(pending: dict[CgroupEvent, None]) -> CgroupEvent:
    first = next(iter(pending))
    del pending[first]
    return first


class KubepodsWatcher:
    """Follows the pods below ``parents``; a context manager, and iterable after entry.

    :param parents: the directories that hold kubepods, now or later. A parent that does not
        exist yet is followed as soon as it exists, if the directory above exists now. The
        watcher searches for more parents at each scan, and when a slice is created in a parent.
    """

    def __init__(self, parents: Parents) -> None:
        self._parents = parents
        self._pods: dict[Path, PodCgroup] = {}
        #: For kubepods and for each QoS level: the path below its parent.
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
        """The pod cgroups that the watcher follows, in the order of discovery."""
        return tuple(self._pods.values())

    @property
    def roots(self) -> tuple[Path, ...]:
        """Every kubepods directory found so far, including directories that are gone."""
        return tuple(path for path in self._levels if kubepods.is_kubepods(path.name))

    def scan(self) -> list[CgroupEvent]:
        """Watch and list everything; return what is new or gone since the last scan.

        Call this first, and after lost events.
        """
        return list(self.scan_by_pod())

    def scan_by_pod(self) -> Iterator[CgroupEvent]:
        """Do what :meth:`scan` does in small steps, so that the caller can handle other events."""
        for path, pod in list(self._pods.items()):
            if not path.is_dir() and self._pods.pop(path, None) is not None:
                yield Removed(pod)
        self._parents.search()
        for parent in self._parents:
            if self._watch(parent.parent, _LEVEL):
                yield from self._enter_parent(parent)

    async def __aiter__(self) -> AsyncIterator[CgroupEvent]:
        """Yield what happens from now on; call :meth:`scan` first."""
        events, pending = deque[Event](), dict[CgroupEvent, None]()
        handled = 0
        while True:
            new = [] if events or pending else [await self._inotify.get()]
            while len(new) < _BATCH and (event := self._inotify.sync_get()) is not None:
                new.append(event)
            for event in new:
                if (pod := self._new_pod(event)) is not None:
                    yield Created(pod)
            events.extend(new)
            # Handle one event for each read: a pod created meanwhile waits only for that event.
            if events and handled < _BATCH:
                handled += 1
                for result in self._handle(events.popleft()):
                    # Yield equal results once, at the place of the last.
                    pending.pop(result, None)
                    pending[result] = None
            else:
                handled = 0
                if pending:
                    yield _pop_first(pending)
                await asyncio.sleep(0)

    def _new_pod(self, event: Event) -> PodCgroup | None:
        """Return the pod if ``event`` says that a pod's cgroup was created, or None."""
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

    def _handle(self, event: Event) -> list[CgroupEvent]:
        if Mask.Q_OVERFLOW in event.mask:
            logger.warning("The kernel dropped inotify events; looking at every pod again.")
            return [*self.scan(), Overflowed()]
        watch, name = event.watch, event.name
        if watch is None:
            return []
        if name is None:  # IGNORED: the cgroup is gone; or MODIFY of a file with its own watch
            return self._populated(watch.path.parent) if Mask.MODIFY in event.mask else []
        path = watch.path / name
        if Mask.ISDIR in event.mask:
            return self._removed(path) if Mask.DELETE in event.mask else self._created(path)
        # Only limits: hugetlb's events and the procs files change with every fault and fork.
        if Mask.MODIFY in event.mask and name.suffix == ".max" and "hugetlb." in name.name:
            return self._changed(watch.path)
        return []

    def _created(self, path: Path) -> list[CgroupEvent]:
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

    def _removed(self, path: Path) -> list[CgroupEvent]:
        pod = self._pods.pop(path, None)
        return self._populated(path.parent) if pod is None else [Removed(pod)]

    def _populated(self, path: Path) -> list[CgroupEvent]:
        pod = self._pods.get(path)
        return [] if pod is None else [Populated(pod)]

    def _changed(self, path: Path) -> list[CgroupEvent]:
        """Return Changed for the pod that the cgroup ``path`` is, or is one or two levels below."""
        for cgroup in (path, path.parent, path.parent.parent):
            if (pod := self._pods.get(cgroup)) is not None:
                return [Changed(pod)]
        return []

    def _search(self) -> list[CgroupEvent]:
        """Enter new slices, and the slices created in them before they were watched."""
        results: list[CgroupEvent] = []
        while new := self._parents.search():
            for parent in new:
                results += self._enter_parent(parent)
        return results

    def _enter_parent(self, parent: Path) -> Iterator[CgroupEvent]:
        if self._watch(parent, _LEVEL):
            for path in kubepods.subdirectories(parent):
                if kubepods.is_kubepods(path.name):
                    yield from self._enter_level(path)

    def _enter_level(self, level: Path) -> Iterator[CgroupEvent]:
        """Watch ``level``, which is kubepods or a QoS level, and enter its levels and pods."""
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

    def _enter_pod(self, pod: PodCgroup) -> list[CgroupEvent]:
        if not self._watch(pod.path, _POD):
            return []
        # The kernel reports its own changes of a file only if the file's inode is in memory
        # (kernfs_notify_workfn). A watch keeps the inode in memory. The kernel changes
        # cgroup.events when the first process enters and when the last process leaves.
        self._watch(pod.path / "cgroup.events", Mask.MODIFY)
        for container in kubepods.containers(pod):
            self._watch(container.path, _POD)
        # A rescan yields the pod again, because its containers may be new.
        self._pods[pod.path] = pod
        return [Changed(pod)]

    def _place(self, path: Path) -> kubepods.Place | None:
        # kubepods must be right below a parent: a tree elsewhere may have a directory named
        # kubepods, but that directory is not kubelet's.
        for parent in self._parents:
            if path.is_relative_to(parent):
                below = path.relative_to(parent)
                if below.parts and kubepods.is_kubepods(below.parts[0]):
                    return kubepods.place(str(below))
        return None

    def _watch(self, path: Path, mask: Mask) -> bool:
        """Add a watch to ``path``; return False if there is no such file or directory."""
        try:
            self._inotify.add_watch(path, mask)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            # ENOSPC: all watches are taken. The caller lists the directory all the same, and
            # the next full pass sees what no event reports.
            logger.warning(
                "%s can't be watched (%s), so the agent only looks at it from time to time;"
                " raise the sysctl fs.inotify.max_user_watches.",
                path,
                error.strerror,
            )
        return True
