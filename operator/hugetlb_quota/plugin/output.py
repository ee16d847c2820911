"""Writes the results of commands to standard output."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from typing import Any

from hugetlb_quota.plugin.table import Screen


def screen() -> Screen:
    """The width, colours and characters of standard output."""
    is_terminal = sys.stdout.isatty()
    colour = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    width = shutil.get_terminal_size((80, 24)).columns
    return Screen(width=width, colour=colour, plain=not encoding.startswith("utf"))


def wants_data(options: argparse.Namespace) -> bool:
    """Whether the user asked for JSON or YAML."""
    return options.output in ("json", "yaml")


def show(text: str) -> None:
    """Print text for people."""
    print(text)


def show_data(options: argparse.Namespace, data: dict[str, Any]) -> bool:
    """Print ``data`` as JSON or YAML; False, and nothing printed, if the user wants text."""
    if options.output == "json":
        print(json.dumps(data, indent=2))
    elif options.output == "yaml":
        import yaml

        print(yaml.safe_dump(data, sort_keys=False), end="")
    else:
        return False
    return True
