"""Tokens of ServiceAccounts, and the ServiceAccount that a new namespace gets."""

from __future__ import annotations

from tests.kube.api import Api, Object


def wait_for_default(api: Api, namespace: str, timeout: float = 60.0) -> None:
    """Wait for the ServiceAccount "default", which pods need.

    The controller manager creates the ServiceAccount a moment after the namespace.
    """
    api.wait_for(
        "v1/serviceaccounts",
        "default",
        lambda found: found is not None,
        namespace=namespace,
        timeout=timeout,
        what="the default ServiceAccount",
    )


def create_token(api: Api, namespace: str, name: str, *, node: str | None = None) -> str:
    """Make a new token of the ServiceAccount, valid for a day.

    With `node`, the token is bound to that Node, as kubelet's tokens for pods are: the API server
    then sets the user's `authentication.kubernetes.io/node-name`.
    """
    spec: Object = {"expirationSeconds": 24 * 3600}
    if node is not None:
        uid = api.get("v1/nodes", node)["metadata"]["uid"]
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
    answer = api.create(
        "v1/serviceaccounts",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        namespace=namespace,
        name=name,
        subresource="token",
    )
    return str(answer["status"]["token"])
