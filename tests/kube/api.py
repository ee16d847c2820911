"""A small JSON client of the Kubernetes API for tests: plain dicts in, plain dicts out.

The name of a resource has group, version and plural: "v1/pods", "apps/v1/deployments",
"hugetlb.dev/v1alpha1/hugetlbquotas".
"""

from __future__ import annotations

import base64
import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import requests
import yaml
from requests.adapters import HTTPAdapter

Object = dict[str, Any]
"""An API object as JSON."""

Objects = list[Object]

MERGE_PATCH: Final = "application/merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"


class ApiError(Exception):
    """An error response; `code`: the HTTP status; `reason`, `message`: from the metav1.Status."""

    def __init__(self, method: str, path: str, code: int, reason: str, message: str) -> None:
        super().__init__(f"{method} {path}: {code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message


class Api:
    """The connection of one identity to one API server."""

    def __init__(
        self,
        server: str,
        ca: Path,
        *,
        token: str | None = None,
        client_cert: tuple[Path, Path] | None = None,
        timeout: float = 40.0,
    ) -> None:
        """`client_cert`: the files (certificate, key). `timeout`: of each request, in seconds.

        The timeout is longer than the API server's timeout for a webhook (10 to 30 s), so that
        a test gets the API server's error.
        """
        self.server = server
        self.timeout = timeout
        self._kinds: dict[tuple[str, str], tuple[str, bool]] = {}
        self._session = requests.Session()
        self._session.trust_env = False  # ignore the user's proxy and netrc
        self._session.verify = str(ca)
        if token is not None:
            self._session.headers["Authorization"] = f"Bearer {token}"
        if client_cert is not None:
            self._session.cert = (str(client_cert[0]), str(client_cert[1]))
        self._session.mount("https://", HTTPAdapter(pool_maxsize=32))

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Api:
        """Use the current context of a kubeconfig with a CA, and a token or client certificate."""
        config = yaml.safe_load(path.read_text())
        named = {
            section: {entry["name"]: entry[section.removesuffix("s")] for entry in config[section]}
            for section in ("clusters", "contexts", "users")
        }
        context = named["contexts"][config["current-context"]]
        cluster, user = named["clusters"][context["cluster"]], named["users"][context["user"]]
        cert = None
        if "client-certificate-data" in user or "client-certificate" in user:
            cert = (_file(user, "client-certificate"), _file(user, "client-key"))
        return cls(
            cluster["server"],
            _file(cluster, "certificate-authority"),
            token=user.get("token"),
            client_cert=cert,
        )

    def close(self) -> None:
        self._session.close()

    def get(
        self,
        resource: str,
        name: str,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> Object:
        return self._object("GET", _path(resource, namespace, name, subresource))

    def list(
        self,
        resource: str,
        *,
        namespace: str | None = None,
        labels: str | None = None,
        fields: str | None = None,
    ) -> Objects:
        """The objects of a namespace, or of all; the selectors have kubectl's syntax."""
        params = {"labelSelector": labels, "fieldSelector": fields}
        found = self._object("GET", _path(resource, namespace), params=_present(params))
        return list(found["items"])

    def create(
        self,
        resource: str,
        body: Object,
        *,
        namespace: str | None = None,
        name: str | None = None,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        """POST. The default namespace is that in `body`; a subresource needs `name`."""
        namespace = namespace or body.get("metadata", {}).get("namespace")
        params = {"dryRun": "All"} if dry_run else {}
        path = _path(resource, namespace, name, subresource)
        return self._object("POST", path, body=body, params=params)

    def replace(self, resource: str, body: Object, *, subresource: str | None = None) -> Object:
        """PUT the object; if it has a resourceVersion, that must be current."""
        meta = body["metadata"]
        path = _path(resource, meta.get("namespace"), meta["name"], subresource)
        return self._object("PUT", path, body=body)

    def patch(
        self,
        resource: str,
        name: str,
        body: Object | Objects,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        kind: str = MERGE_PATCH,
    ) -> Object:
        path = _path(resource, namespace, name, subresource)
        return self._object("PATCH", path, body=body, content_type=kind)

    def delete(
        self,
        resource: str,
        name: str,
        *,
        namespace: str | None = None,
        grace_seconds: int | None = None,
    ) -> Object:
        params = _present({"gracePeriodSeconds": grace_seconds})
        return self._object("DELETE", _path(resource, namespace, name), params=params)

    def apply(self, body: Object, *, manager: str = "tests") -> Object:
        """Server-side apply of an object with force, so that conflicts do not fail."""
        plural, namespaced = self._resource_of(body["apiVersion"], body["kind"])
        meta = body["metadata"]
        namespace = meta.get("namespace", "default") if namespaced else None
        return self._object(
            "PATCH",
            _path(f"{body['apiVersion']}/{plural}", namespace, meta["name"]),
            body=body,
            content_type=APPLY_PATCH,
            params={"fieldManager": manager, "force": "true"},
        )

    def remove(self, body: Object) -> None:
        """Delete an object if it exists."""
        plural, _ = self._resource_of(body["apiVersion"], body["kind"])
        meta = body["metadata"]
        try:
            self.delete(
                f"{body['apiVersion']}/{plural}", meta["name"], namespace=meta.get("namespace")
            )
        except ApiError as error:
            if error.code != 404:
                raise

    def wait_for(
        self,
        resource: str,
        name: str,
        condition: Callable[[Object | None], bool],
        *,
        namespace: str | None = None,
        timeout: float = 60.0,
        what: str = "what was waited for",
    ) -> Object | None:
        """Read the object (None if it does not exist) until `condition` holds; return it."""
        deadline = time.monotonic() + timeout
        while True:
            seen: Object | None
            try:
                seen = self.get(resource, name, namespace=namespace)
            except ApiError as error:
                if error.code != 404:
                    raise
                seen = None
            if condition(seen):
                return seen
            if time.monotonic() >= deadline:
                where = f"{resource} {namespace + '/' if namespace else ''}{name}"
                raise TimeoutError(f"{where}: {what} did not come in {timeout:.0f} s: {seen}")
            time.sleep(0.1)

    def raw(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        params: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send any request, such as GET /version; return the response, whatever its status."""
        return self._session.request(
            method, self.server + path, json=body, params=params, timeout=self.timeout
        )

    def _object(
        self,
        method: str,
        path: str,
        *,
        body: Object | Objects | None = None,
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
    ) -> Object:
        answer = self._session.request(
            method,
            self.server + path,
            json=copy.copy(body),
            params=params,
            headers={"Content-Type": content_type} if body is not None else {},
            timeout=self.timeout,
        )
        try:
            said = answer.json()
        except requests.JSONDecodeError:
            said = {"message": answer.text.strip()}
        if answer.status_code >= 400:
            raise ApiError(
                method, path, answer.status_code, said.get("reason", ""), said.get("message", "")
            )
        assert isinstance(said, dict)
        return said

    def _resource_of(self, api_version: str, kind: str) -> tuple[str, bool]:
        """The plural, and whether the kind is namespaced, from discovery."""
        if (api_version, kind) not in self._kinds:
            for resource in self._object("GET", _root(api_version))["resources"]:
                if "/" not in resource["name"]:
                    found = (resource["name"], bool(resource["namespaced"]))
                    self._kinds[api_version, resource["kind"]] = found
        if (api_version, kind) not in self._kinds:
            raise ApiError("GET", _root(api_version), 404, "NotFound", f"no kind {kind}")
        return self._kinds[api_version, kind]


def _root(api_version: str) -> str:
    return f"/{'apis' if '/' in api_version else 'api'}/{api_version}"


def _path(
    resource: str,
    namespace: str | None,
    name: str | None = None,
    subresource: str | None = None,
) -> str:
    api_version, _, plural = resource.rpartition("/")
    parts = [_root(api_version)]
    if namespace and plural != "namespaces":
        parts += ["namespaces", namespace]
    parts += [part for part in (plural, name, subresource) if part]
    return "/".join(parts)


def _present(params: Mapping[str, object | None]) -> dict[str, str]:
    return {key: str(value) for key, value in params.items() if value is not None}


def _file(section: Mapping[str, str], field: str) -> Path:
    """The file that a kubeconfig names, or a new file with the kubeconfig's data."""
    if field in section:
        return Path(section[field])
    with tempfile.NamedTemporaryFile(prefix="kubeconfig-", suffix=".pem", delete=False) as file:
        file.write(base64.b64decode(section[f"{field}-data"]))
    return Path(file.name)
