"""Leader election by a Lease: at most one process leads, and a process that lost it has stopped.

The election is that of kubernetes.aio. This module adds what that election lacks. Its requests
may take five minutes. After a broken connection it ends while the work runs on. It does not
notice that the work ended, does not wait until the work has stopped, and does not release the
Lease.

The election has a thread, an event loop and a connection of its own: a count from scratch keeps the
program's loop busy for longer than a renewal may take.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import aiohttp
from kubernetes.aio.client import V1Lease, V1ObjectMeta
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.events import micro_time
from hugetlb_quota.kube.resources import LEASES

#: Other processes may take a Lease that was not renewed for this time, in seconds.
LEASE_DURATION: Final = 20
#: A leader tries to renew for this time, in seconds, then it gives up. Its last attempt may
#: take two more requests, which must end before LEASE_DURATION.
RENEW_DEADLINE: Final = 10
#: The wait between attempts, in seconds.
RETRY_PERIOD: Final = 2
#: The timeout of a request to the Lease, in seconds.
LEASE_REQUEST_TIMEOUT: Final = 2.0

logger = logging.getLogger(__name__)


class LeadershipLost(RuntimeError):
    """The Lease could not be renewed, and another process may lead. End the program."""


class _TimedLeaseLock(LeaseLock):
    """A lock with a timeout for each request; a failed request is only a failed attempt."""

    async def get(
        self, name: str, namespace: str
    ) -> tuple[bool, LeaderElectionRecord] | tuple[bool, Exception] | tuple[bool, None]:
        try:
            async with asyncio.timeout(LEASE_REQUEST_TIMEOUT):
                return await super().get(name, namespace)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return False, ApiException(status=0, reason=str(error) or type(error).__name__)

    async def create(
        self, name: str, namespace: str, election_record: LeaderElectionRecord
    ) -> bool:
        # super().create of kubernetes 37.0.2 passes pretty=True, and the library's own
        # validation refuses that.
        lease = V1Lease(metadata=V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        try:
            async with asyncio.timeout(LEASE_REQUEST_TIMEOUT):
                await self.api_instance.create_namespaced_lease(namespace, lease)
            return True
        except (TimeoutError, aiohttp.ClientError, OSError, ApiException) as error:
            logger.warning("Lease %s/%s could not be created: %s", namespace, name, error)
            return False

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        try:
            async with asyncio.timeout(LEASE_REQUEST_TIMEOUT):
                return await super().update(name, namespace, updated_record)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            logger.warning("Lease %s/%s could not be renewed: %s", namespace, name, error)
            return False


class _Election:
    """The election in a thread of its own; it sets events and futures of the caller's loop."""

    def __init__(self, connection: Connection, namespace: str, name: str, identity: str) -> None:
        self._connection = connection
        self._names = (name, namespace, identity)
        self._loop = asyncio.get_running_loop()
        #: Done when the thread runs; the result stops the election.
        self._running: asyncio.Future[Callable[[], None]] = self._loop.create_future()
        #: Set when this process holds the Lease.
        self.begun = asyncio.Event()
        #: Done when the election has ended, so nothing acquires or renews the Lease any more.
        self.over: asyncio.Future[None] = self._loop.create_future()
        # A daemon thread, so that the program can exit without stop().
        threading.Thread(target=self._work, name="leader election", daemon=True).start()

    async def stop(self) -> None:
        """Stop the election, and wait until it has ended."""
        await asyncio.wait((self._running, self.over), return_when=asyncio.FIRST_COMPLETED)
        if self._running.done():
            with suppress(RuntimeError):  # the thread's loop is closed: the election has ended
                self._running.result()()
        await asyncio.wait((self.over,))
        self.over.exception()

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            asyncio.run(self._elect())
        except BaseException as raised:  # the exception of `over`
            error = raised
        self._loop.call_soon_threadsafe(self._end, error)

    def _end(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, asyncio.CancelledError):
            self.over.set_result(None)
        else:
            self.over.set_exception(error)

    async def _elect(self) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def stop() -> None:
            loop.call_soon_threadsafe(task.cancel)

        self._loop.call_soon_threadsafe(self._running.set_result, stop)

        async def begin() -> None:
            self._loop.call_soon_threadsafe(self.begun.set)

        async def stopped() -> None:
            """Do nothing: :func:`lead` sees the end of the election."""

        async with self._connection.open_another() as connection:
            config = Config(
                _TimedLeaseLock(*self._names, await connection.client()),
                lease_duration=LEASE_DURATION,
                renew_deadline=RENEW_DEADLINE,
                retry_period=RETRY_PERIOD,
                onstarted_leading=begin,
                onstopped_leading=stopped,
            )
            await LeaderElection(config).run()


async def lead(
    connection: Connection,
    namespace: str,
    name: str,
    identity: str,
    work: Callable[[], Awaitable[None]],
) -> None:
    """Wait for the Lease ``namespace/name``, then run ``work`` while this process holds the Lease.

    The function returns when ``work`` returns, and raises what ``work`` raises. At the end, and
    also after a cancellation, ``work`` has stopped and the Lease is released.

    :raises LeadershipLost: if the Lease could not be renewed.
    """
    election = _Election(connection, namespace, name, identity)
    begun = asyncio.create_task(election.begun.wait(), name="leader election: begun")
    working: asyncio.Future[None] | None = None
    try:
        await asyncio.wait((election.over, begun), return_when=asyncio.FIRST_COMPLETED)
        if begun.done():
            logger.info("%s leads: it holds Lease %s/%s.", identity, namespace, name)
            working = asyncio.ensure_future(work())
            await asyncio.wait((election.over, working), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return
        election.over.result()
        raise LeadershipLost(
            f"Lease {namespace}/{name} could not be renewed for {RENEW_DEADLINE} s;"
            f" {identity} stops leading."
        )
    finally:
        held = not election.over.done()
        begun.cancel()
        if working is not None:
            working.cancel()
            await asyncio.wait((working,))
        await election.stop()
        if working is not None and held:
            await _release(connection, namespace, name, identity)


async def term(connection: Connection, namespace: str, name: str, identity: str) -> int:
    """The term of this leader: the Lease's resourceVersion, lower than that of any later leader.

    The next leader writes the Lease, so the next term is higher.

    :raises LeadershipLost: if another process holds the Lease.
    :raises ApiError: if the Lease can't be read.
    """
    lease = await connection.get(LEASES, name, namespace, timeout=LEASE_REQUEST_TIMEOUT)
    holder = lease["spec"].get("holderIdentity")
    if holder != identity:
        raise LeadershipLost(
            f"Lease {namespace}/{name} is held by {holder or 'nobody'}; {identity} stops leading."
        )
    return int(lease["metadata"]["resourceVersion"])


async def take(connection: Connection, namespace: str, name: str, identity: str) -> bool:
    """Take the Lease from its holder, or renew the own Lease; whether the Lease had a holder.

    :raises ApiError: if a read or a write failed; the server may have done the write.
    """
    while True:
        try:
            lease = await connection.get(LEASES, name, namespace)
        except errors.NotFound:
            return False
        spec, now = lease["spec"], micro_time()
        holder = spec.get("holderIdentity")
        spec |= {"leaseDurationSeconds": LEASE_DURATION, "renewTime": now}
        if holder != identity:
            transitions = spec.get("leaseTransitions") or 0
            spec |= {
                "holderIdentity": identity,
                "acquireTime": now,
                "leaseTransitions": transitions + 1,
            }
        try:
            await connection.replace(LEASES, name, lease, namespace)
        except errors.Conflict:  # the holder has just renewed the Lease
            continue
        if holder != identity:
            logger.info("%s took Lease %s/%s.", identity, namespace, name)
        return bool(holder)


async def _release(connection: Connection, namespace: str, name: str, identity: str) -> None:
    """Release the Lease if this process still holds it, so that the next leader starts at once."""
    try:
        lease: dict[str, Any] = await connection.get(
            LEASES, name, namespace, timeout=LEASE_REQUEST_TIMEOUT
        )
        if lease["spec"].get("holderIdentity") != identity:
            return
        # As in client-go's release(): no holder, and a short duration.
        lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        await connection.replace(LEASES, name, lease, namespace, timeout=LEASE_REQUEST_TIMEOUT)
        logger.info("%s released Lease %s/%s.", identity, namespace, name)
    except errors.ApiError as error:
        logger.warning("Lease %s/%s was not released: %s", namespace, name, error)
