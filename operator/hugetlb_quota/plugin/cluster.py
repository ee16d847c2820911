"""The plugin's only way to the API server. It remembers what the user may not read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Self

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.kube import errors, finalizers, resources
from hugetlb_quota.kube.connection import Connection, NotConfigured
from hugetlb_quota.kube.informer import Informer
from hugetlb_quota.kube.pages import PAGE, pages
from hugetlb_quota.kube.pods import project_pod
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.kube.resources import Resource
from hugetlb_quota.plugin.kubeconfig import kubeconfig_files, namespace_of, no_cluster
from hugetlb_quota.plugin.problem import Exit, Problem, not_found
from hugetlb_quota.plugin.reports import NodeReport, read_report
from hugetlb_quota.plugin.world import World, forest_of, waiting

Json = dict[str, Any]

#: The shortest time between two worlds of :meth:`Cluster.watch`, in seconds.
_SHORTEST_PERIOD: Final = 0.5
#: The time between two checks that the watch still runs, in seconds.
_TROUBLE_PERIOD: Final = 1.0
#: The chart's webhook for pods. A refusal with this name is admission's refusal.
POD_WEBHOOK: Final = "pods.hugetlb.dev"
_DENIED: Final = f'admission webhook "{POD_WEBHOOK}" denied the request: '
_ROLE: Final = "ask an administrator to bind the ClusterRole hugetlb-quota-view to you"


class Cluster:
    """A cluster as one user sees it. Use :meth:`open`.

    ``namespace``: the namespace of -n, or else of the context. ``unseen``: what the user has no
    right to read, a sentence each; each read may add to it. ``trouble``: why the last world of
    :meth:`watch` may be out of date.
    """

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self.namespace = namespace
        self.unseen: list[str] = []
        self.trouble = ""
        self._sees_all_quotas = True

    @classmethod
    @asynccontextmanager
    async def open(
        cls, kubeconfig: str | None, context: str | None, namespace: str | None
    ) -> AsyncIterator[Self]:
        """Connect to the cluster that kubectl would choose by the same options.

        :raises Problem: when no cluster is configured, or a request fails.
        """
        files = kubeconfig_files(kubeconfig)
        try:
            own = namespace_of(files, context)
            async with Connection.open(
                "kubectl-hugetlb", kubeconfig=files, context=context
            ) as connection:
                try:
                    yield cls(connection, namespace or own)
                except errors.ApiError as error:
                    raise _problem(error, connection.server) from error
        except NotConfigured as error:
            raise no_cluster(str(error.__cause__)) from error

    @property
    def server(self) -> str:
        """The address of the API server."""
        return self._connection.server

    async def world(self, *, pods: bool = False, reports: bool = False) -> World:
        """The quotas, and on request pods and reports, as far as the user may read them."""
        quotas, namespaces, read_pods, read_reports = await asyncio.gather(
            self._quotas(),
            self._namespace_labels(),
            self._pods() if pods else _nothing(),
            self.reports() if reports else _nothing(),
        )
        return _world(quotas, namespaces, read_pods, read_reports, whole=self._sees_all_quotas)

    async def reports(self) -> tuple[NodeReport, ...] | None:
        """The nodes' reports; None if the user may not read them."""
        try:
            nodes = await self.every(resources.HUGETLB_NODES)
        except errors.Forbidden:
            self._note_unseen(f"the reports of nodes (you may not list hugetlbnodes; {_ROLE})")
            return None
        return tuple(map(read_report, nodes))

    async def workload(self, resource: Resource, kind: str, name: str, namespace: str) -> Json:
        """Read a pod, or an object that makes pods.

        :raises Problem: when there is no such object; it suggests similar names.
        """
        try:
            return await self._connection.get(resource, name, namespace)
        except errors.NotFound:
            try:
                near = await self.every(resource, namespace)
            except errors.ApiError:
                near = []
            names = [f"{namespace}/{each['metadata']['name']}" for each in near]
            where = f" in namespace {namespace}"
            raise not_found(kind, f"{namespace}/{name}", names, where) from None

    async def try_pod(self, pod: Json, namespace: str) -> tuple[bool | None, str]:
        """Ask the API server by a dry run whether it would accept ``pod``.

        Returns the verdict and the reason. The verdict is None if the dry run gave none: the user
        may not create pods, or the API server did not answer.
        """
        try:
            await self._connection.create(resources.PODS, pod, namespace, dry_run=True)
        except errors.Forbidden as error:
            if "cannot create resource" in error.message:
                return None, f"you may not create pods in namespace {namespace}"
            return False, error.message.partition(_DENIED)[2] or error.message
        except errors.ApiUnreachable as error:
            return None, str(error)
        except errors.ApiError as error:
            return False, error.message.partition(_DENIED)[2] or str(error)
        return True, ""

    async def every(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
    ) -> list[Json]:
        """List all objects of a kind, page by page.

        :param namespace: None lists all namespaces.
        :raises ApiError: see :mod:`hugetlb_quota.kube.errors`.
        """

        def read(continuation: str | None) -> Awaitable[Json]:
            return self._connection.list_page(
                resource,
                namespace,
                label_selector=label_selector,
                limit=PAGE,
                continuation=continuation,
            )

        return [raw async for page in pages(read) for raw in page.get("items") or ()]

    async def one(self, resource: Resource, name: str, namespace: str | None = None) -> Json:
        """Read one object.

        :raises ApiError: NotFound among them.
        """
        return await self._connection.get(resource, name, namespace)

    async def remove_finalizer(self, quota: Json) -> bool:
        """Remove the operator's finalizer; False if the quota has changed and must be read again.

        :raises ApiError: Forbidden among them.
        """
        return await finalizers.remove_finalizer(self._connection, quota)

    async def watch(self) -> AsyncGenerator[World, None]:
        """Yield the quotas now and after every change, without end.

        While the watch fails, ``trouble`` says why, and the last world is yielded again.
        """
        changed = asyncio.Event()
        await self._quotas()  # raises the right Problem if the quotas can't be read
        namespaces = await self._namespace_labels()
        scope = None if self._sees_all_quotas else self.namespace
        quotas: Informer[Json] = Informer(
            self._connection, resources.HUGETLB_QUOTAS, lambda raw: raw, namespace=scope
        )
        quotas.on_change(lambda old, new, version: changed.set())
        running = asyncio.create_task(quotas.run())
        try:
            while not quotas.synced.is_set():
                waiting = asyncio.create_task(quotas.synced.wait())
                await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if running.done():
                    running.result()
            while True:
                changed.clear()
                self.trouble = quotas.trouble
                with contextlib.suppress(errors.ApiError):  # then keep the labels of before
                    namespaces = await self._namespace_labels()
                counted = _to_quotas(quotas.store.values())
                yield _world(counted, namespaces, whole=scope is None)
                await asyncio.sleep(_SHORTEST_PERIOD)
                while not changed.is_set() and quotas.trouble == self.trouble:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_TROUBLE_PERIOD):
                            await changed.wait()
        finally:
            running.cancel()
            await asyncio.wait((running,))

    async def _quotas(self) -> list[QuotaObject]:
        """All quotas, or only the namespace's quotas if the user may not list all.

        :raises Problem: when the user may list neither, or the CRD is not installed.
        """
        try:
            try:
                found = await self.every(resources.HUGETLB_QUOTAS)
            except errors.Forbidden:
                found = await self.every(resources.HUGETLB_QUOTAS, self.namespace)
                self._sees_all_quotas = False
                self._note_unseen(
                    f"quotas of other namespaces than {self.namespace} (you may list hugetlbquotas"
                    f" only there; {_ROLE})"
                )
        except errors.Forbidden as error:
            raise Problem(
                Exit.FORBIDDEN,
                f"You may list hugetlbquotas neither in all namespaces nor in {self.namespace};"
                f" {_ROLE}, or name another namespace with -n.",
            ) from error
        except errors.NotFound as error:
            raise Problem(
                Exit.NOT_INSTALLED,
                f"hugetlb-quota is not installed at {self.server}: it serves no HugeTLBQuota;"
                " install the chart, or name another cluster with --context.",
            ) from error
        return _to_quotas(found)

    async def _namespace_labels(self) -> Mapping[str, Mapping[str, str]] | None:
        try:
            found = await self.every(resources.NAMESPACES)
        except errors.Forbidden:
            return None  # the conditions of each quota say whether it is attached
        return {each["metadata"]["name"]: each["metadata"].get("labels") or {} for each in found}

    async def _pods(self) -> list[Json] | None:
        try:
            found = await self.every(resources.PODS)
        except errors.Forbidden:
            try:
                found = await self.every(resources.PODS, self.namespace)
            except errors.Forbidden:
                self._note_unseen("pods that no node reports yet (you may not list pods)")
                return None
            self._note_unseen(
                f"pods of other namespaces than {self.namespace} that no node reports yet (you may"
                " list pods only there)"
            )
        return found

    def _note_unseen(self, what: str) -> None:
        if what not in self.unseen:
            self.unseen.append(what)


def split_name(text: str, namespace: str) -> tuple[str, str]:
    """The namespace and the name in NAME or NAMESPACE/NAME.

    :param namespace: the namespace of a bare NAME.
    :raises Problem: when the text has another form.
    """
    before, slash, name = text.partition("/")
    if slash and (not before or not name or "/" in name):
        raise Problem(Exit.USAGE, f"{text} is no name: NAME or NAMESPACE/NAME is expected.")
    return (before, name) if slash else (namespace, text)


async def _nothing() -> None:
    """Stands for a read that was not requested."""


def _to_quotas(objects: Iterable[Json]) -> list[QuotaObject]:
    return [QuotaObject.to_count(raw) for raw in objects]


def _world(
    quotas: Iterable[QuotaObject],
    namespaces: Mapping[str, Mapping[str, str]] | None,
    pods: list[Json] | None = None,
    reports: tuple[NodeReport, ...] | None = None,
    *,
    whole: bool,
) -> World:
    by_key: dict[QuotaKey, QuotaObject] = {each.key: each for each in quotas}
    forest = forest_of(by_key.values(), namespaces, whole=whole)
    projected = None if pods is None else tuple(map(project_pod, pods))
    return World(by_key, forest, projected, reports, waiting(pods or ()))


def _problem(error: errors.ApiError, server: str) -> Problem:
    """The sentence for an error that no command explains better."""
    if isinstance(error, errors.ApiUnreachable):
        return Problem(
            Exit.UNREACHABLE,
            f"{str(error).rstrip('.')}; check that {server} is the right cluster (--context) and"
            " can be reached from here.",
        )
    if error.status == 401:
        return Problem(
            Exit.UNREACHABLE,
            f"The API server at {server} does not accept your credentials; log in again, or name"
            " another context with --context.",
        )
    if isinstance(error, errors.Forbidden):
        return Problem(
            Exit.FORBIDDEN, f"{str(error).rstrip('.')}; ask an administrator for this right."
        )
    return Problem(Exit.UNREACHABLE, f"The API server at {server} answered: {error}")
