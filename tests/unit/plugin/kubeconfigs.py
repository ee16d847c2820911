"""A kubeconfig for tests."""

from __future__ import annotations

from typing import Final

#: The cluster of this kubeconfig never answers.
KUBECONFIG: Final = """\
apiVersion: v1
kind: Config
clusters: [{name: y, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: y, user: {token: t}}]
contexts: [{name: xy, context: {cluster: y, user: y, namespace: n}}]
current-context: xy
"""
