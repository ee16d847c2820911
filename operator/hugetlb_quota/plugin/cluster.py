"""The plugin's one way to the API server: what it reads there, and what it may not see."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.kube import errors, finalizers, resources
from hugetlb_quota.kube.connection import Connection, NotConfigured
from hugetlb_quota.kube.informer import Informer
from hugetlb_quota.kube.pods import Pod, project_pod
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.kube.resources import Resource
from hugetlb_quota.plugin.problem import Exit, Problem, not_found
from hugetlb_quota.plugin.reports import NodeReport, read_report
from hugetlb_quota.plugin.world import World, forest_of

Json = dict[str, Any]

_PAGE: Final = 500
#: Between two pictures of a watch, in seconds.
_SHORTEST_PERIOD: Final = 0.5
#: How often it is looked whether a watch still runs, in seconds.
_TROUBLE_PERIOD: Final = 1.0
#: The webhook of the chart that decides about pods; its refusals are told apart by this name.
POD_WEBHOOK: Final = "pods.hugetlb.dev"
_DENIED: Final = f'admission webhook "{POD_WEBHOOK}" denied the request: '
_ROLE: Final = "ask an administrator to bind the ClusterRole hugetlb-quota-view to you"


class Cluster:
    """A cluster as one user sees it; made by :meth:`open`.

    ``namespace``: the one of -n, else of the context. ``unseen``: what could not be read for
    want of rights, a sentence each; those are filled in as things are read. ``trouble``: why the
    last of :meth:`pictures` may be out of date.
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
        """A connection as kubectl makes it from the same options.

        :raises Problem: when there is no cluster to talk to, or something can't be read.
        """
        files = kubeconfig or os.environ.get("KUBECONFIG") or _default_kubeconfig()
        try:
            own = _namespace(files, context)
            async with Connection.open(
                "kubectl-hugetlb", kubeconfig=files, context=context
            ) as connection:
                try:
                    yield cls(connection, namespace or own)
                except errors.ApiError as error:
                    raise _problem(error, connection.server) from error
        except NotConfigured as error:
            raise _no_cluster(str(error.__cause__)) from error

    @property
    def server(self) -> str:
        """The API server's address."""
        return self._connection.server

    async def world(self, *, pods: bool = False, reports: bool = False) -> World:
        """The quotas, and what else is asked for, as far as it may be read."""
        quotas, namespaces, found_pods, found_reports = await asyncio.gather(
            self._quotas(),
            self._namespace_labels(),
            self._pods() if pods else _nothing(),
            self.reports() if reports else _nothing(),
        )
        return _world(quotas, namespaces, found_pods, found_reports, whole=self._sees_all_quotas)

    async def reports(self) -> tuple[NodeReport, ...] | None:
        """The nodes' reports; None when they may not be read."""
        try:
            found = await self.every(resources.HUGETLB_NODES)
        except errors.Forbidden:
            self._unseen(f"what nodes report (hugetlbnodes may not be listed; {_ROLE})")
            return None
        return tuple(map(read_report, found))

    async def workload(self, resource: Resource, kind: str, name: str, namespace: str) -> Json:
        """An object with pods, as it is stored.

        :raises Problem: when there is none; it says near names.
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
        """Whether the API server would take ``pod``, by a dry run, and its words if not.

        None when the dry run told nothing: no right to create pods, or nobody answered.
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
        """All objects of a kind, page by page; the namespace's, or all namespaces'.

        :raises ApiError: as :mod:`hugetlb_quota.kube.errors` tells.
        """
        found: list[Json] = []
        continuation: str | None = None
        while True:
            page = await self._connection.list_page(
                resource,
                namespace,
                label_selector=label_selector,
                limit=_PAGE,
                continuation=continuation,
            )
            found += page.get("items") or ()
            continuation = (page.get("metadata") or {}).get("continue")
            if not continuation:
                return found

    async def one(self, resource: Resource, name: str, namespace: str | None = None) -> Json:
        """One object.

        :raises ApiError: NotFound among them.
        """
        return await self._connection.get(resource, name, namespace)

    async def let_go(self, quota: Json) -> bool:
        """Take the operator's finalizer off; False where the quota is to be looked at again.

        :raises ApiError: Forbidden among them.
        """
        return await finalizers.let_go(self._connection, quota)

    async def pictures(self) -> AsyncGenerator[World, None]:
        """The quotas now and after every change, for ever.

        While they can't be watched, ``trouble`` says why, and the last picture is given again.
        """
        changed = asyncio.Event()
        await self._quotas()  # for the sentence, should it not be possible
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
                with contextlib.suppress(errors.ApiError):  # then those of before hold
                    namespaces = await self._namespace_labels()
                found = _read(quotas.store.values())
                yield _world(found, namespaces, whole=scope is None)
                await asyncio.sleep(_SHORTEST_PERIOD)
                while not changed.is_set() and quotas.trouble == self.trouble:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_TROUBLE_PERIOD):
                            await changed.wait()
        finally:
            running.cancel()
            await asyncio.wait((running,))

    async def _quotas(self) -> list[QuotaObject]:
        """All quotas; those of the namespace alone where no more may be read.

        :raises Problem: when none may be read, or the kind is not there.
        """
        try:
            try:
                found = await self.every(resources.HUGETLB_QUOTAS)
            except errors.Forbidden:
                found = await self.every(resources.HUGETLB_QUOTAS, self.namespace)
                self._sees_all_quotas = False
                self._unseen(
                    f"quotas of other namespaces than {self.namespace} (hugetlbquotas may be listed"
                    f" there alone; {_ROLE})"
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
        return _read(found)

    async def _namespace_labels(self) -> Mapping[str, Mapping[str, str]] | None:
        try:
            found = await self.every(resources.NAMESPACES)
        except errors.Forbidden:
            return None  # a quota's own conditions say whether it is attached
        return {each["metadata"]["name"]: each["metadata"].get("labels") or {} for each in found}

    async def _pods(self) -> tuple[Pod, ...] | None:
        try:
            found = await self.every(resources.PODS)
        except errors.Forbidden:
            try:
                found = await self.every(resources.PODS, self.namespace)
            except errors.Forbidden:
                self._unseen("pods that no node reports yet (pods may not be listed)")
                return None
            self._unseen(
                f"pods of other namespaces than {self.namespace} that no node reports yet (pods may"
                " be listed there alone)"
            )
        return tuple(map(project_pod, found))

    def _unseen(self, what: str) -> None:
        if what not in self.unseen:
            self.unseen.append(what)


def contexts(kubeconfig: str | None) -> list[str]:
    """The names of all contexts.

    :raises Problem: when the kubeconfig can't be read.
    """
    files = kubeconfig or os.environ.get("KUBECONFIG") or _default_kubeconfig()
    return [] if files is None else sorted(_contexts(files)[0])


def _contexts(files: str) -> tuple[dict[str, str], str]:
    """The namespace of each context, and which is the current one.

    :raises Problem: when the kubeconfig can't be read.
    """
    # The library would tell of a missing key.
    if not any(Path(each).exists() for each in files.split(os.pathsep) if each):
        raise _no_cluster(f"there is no file {files}")
    import yaml
    from kubernetes.aio.config import ConfigException, list_kube_config_contexts

    try:
        found, current = list_kube_config_contexts(files)  # type: ignore[no-untyped-call]
        by_name = {
            str(each["name"]): str((each.get("context") or {}).get("namespace") or "default")
            for each in found
        }
        return by_name, str((current or {}).get("name") or "")
    except (ConfigException, yaml.YAMLError, OSError, ValueError) as error:
        raise _no_cluster(f"{files}: {' '.join(str(error).split())}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise _no_cluster(f"{files} is no kubeconfig") from error


def _no_cluster(why: str) -> Problem:
    return Problem(
        Exit.UNREACHABLE,
        f"No cluster to talk to: {why.rstrip('.')}; name one with --kubeconfig, --context or"
        " $KUBECONFIG.",
    )


def _default_kubeconfig() -> str | None:
    path = Path.home() / ".kube" / "config"
    return str(path) if path.exists() else None


def _namespace(files: str | None, context: str | None) -> str:
    """The namespace of the context, as kubectl takes it; in a pod that of the pod.

    :raises Problem: when the files can't be read, or have no such context.
    """
    if files is None:
        from hugetlb_quota.kube.transport import ACCOUNT

        inside = ACCOUNT / "namespace"
        if not inside.exists():
            raise _no_cluster("there is no ~/.kube/config, and $KUBECONFIG is not set")
        return inside.read_text().strip()
    found, current = _contexts(files)
    wanted = context or current
    if wanted not in found:
        raise not_found("context", wanted, found, f" in {files}", Exit.UNREACHABLE)
    return found[wanted]


async def _nothing() -> None:
    """In the place of a read that nobody asked for."""


def _read(found: Iterable[Json]) -> list[QuotaObject]:
    return [QuotaObject.to_count(raw) for raw in found]


def _world(
    quotas: Iterable[QuotaObject],
    namespaces: Mapping[str, Mapping[str, str]] | None,
    pods: tuple[Pod, ...] | None = None,
    reports: tuple[NodeReport, ...] | None = None,
    *,
    whole: bool,
) -> World:
    by_key: dict[QuotaKey, QuotaObject] = {each.key: each for each in quotas}
    forest = forest_of(by_key.values(), namespaces, whole=whole)
    return World(by_key, forest, pods, reports)


def _problem(error: errors.ApiError, server: str) -> Problem:
    """The sentence for an error that no command has a better one for."""
    if isinstance(error, errors.ApiUnreachable):
        return Problem(
            Exit.UNREACHABLE,
            f"{str(error).rstrip('.')}; see whether {server} is the right cluster (--context) and"
            " can be reached from here.",
        )
    if error.status == 401:
        return Problem(
            Exit.UNREACHABLE,
            f"The API server at {server} does not accept your credentials; log in anew, or name"
            " another context with --context.",
        )
    if isinstance(error, errors.Forbidden):
        return Problem(Exit.FORBIDDEN, f"{str(error).rstrip('.')}; ask for that right.")
    return Problem(Exit.UNREACHABLE, f"The API server at {server} answered: {error}")
