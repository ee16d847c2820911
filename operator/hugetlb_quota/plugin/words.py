"""The words of the command line that both the parser and completion use."""

from __future__ import annotations

from typing import Final

#: The output formats.
FORMATS: Final = ("table", "wide", "json", "yaml")
#: The kinds that ``explain`` takes: the long, singular name by each other name that kubectl takes.
KINDS: Final = {
    "po": "pod",
    "pods": "pod",
    "deploy": "deployment",
    "deployments": "deployment",
    "sts": "statefulset",
    "statefulsets": "statefulset",
    "ds": "daemonset",
    "daemonsets": "daemonset",
    "rs": "replicaset",
    "replicasets": "replicaset",
    "jobs": "job",
    "cj": "cronjob",
    "cronjobs": "cronjob",
}
#: The shells that have a completion script.
SHELLS: Final = ("bash", "zsh", "fish")
