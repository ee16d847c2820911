"""Reads the kubeconfig: which contexts it has, and the namespace of a context."""

from __future__ import annotations

import os
from pathlib import Path

from hugetlb_quota.plugin.problem import Exit, Problem, not_found


def kubeconfig_files(option: str | None) -> str | None:
    """The kubeconfig files that kubectl would use: the option, $KUBECONFIG or ~/.kube/config.

    :param option: the value of ``--kubeconfig``.
    """
    path = Path.home() / ".kube" / "config"
    return option or os.environ.get("KUBECONFIG") or (str(path) if path.exists() else None)


def contexts(option: str | None) -> list[str]:
    """The names of all contexts.

    :param option: the value of ``--kubeconfig``.
    :raises Problem: when the kubeconfig can't be read.
    """
    files = kubeconfig_files(option)
    return [] if files is None else sorted(_contexts(files)[0])


def namespace_of(files: str | None, context: str | None) -> str:
    """The namespace of a context, as kubectl chooses it; inside a pod, the pod's namespace.

    :param context: None is the current context.
    :raises Problem: when the files can't be read, or have no such context.
    """
    if files is None:
        from hugetlb_quota.kube.transport import ACCOUNT

        inside = ACCOUNT / "namespace"
        if not inside.exists():
            raise no_cluster("there is no ~/.kube/config, and $KUBECONFIG is not set")
        return inside.read_text().strip()
    namespaces, current = _contexts(files)
    wanted = context or current
    if wanted not in namespaces:
        where, have = f" in {files}", "the kubeconfig has: "
        raise not_found("context", wanted, namespaces, where, Exit.UNREACHABLE, have=have)
    return namespaces[wanted]


def no_cluster(why: str) -> Problem:
    """The problem that no cluster is configured."""
    return Problem(
        Exit.UNREACHABLE,
        f"No cluster is configured: {why.rstrip('.')}; name one with --kubeconfig, --context or"
        " $KUBECONFIG.",
    )


def _contexts(files: str) -> tuple[dict[str, str], str]:
    """The namespace of each context, and the name of the current context.

    :raises Problem: when the kubeconfig can't be read.
    """
    # Without a file, the library's error would be about a missing key.
    if not any(Path(file).exists() for file in files.split(os.pathsep) if file):
        raise no_cluster(f"there is no file {files}")
    import yaml
    from kubernetes.aio.config import ConfigException, list_kube_config_contexts

    try:
        found, current = list_kube_config_contexts(files)  # type: ignore[no-untyped-call]
        namespaces = {
            str(each["name"]): str((each.get("context") or {}).get("namespace") or "default")
            for each in found
        }
        return namespaces, str((current or {}).get("name") or "")
    except (ConfigException, yaml.YAMLError, OSError, ValueError) as error:
        raise no_cluster(f"{files}: {' '.join(str(error).split())}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise no_cluster(f"{files} is not a kubeconfig") from error
