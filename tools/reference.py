"""Write the parts of docs/reference.md that models and command lines define: `make reference`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from hugetlb_quota.admission.__main__ import command_line as admission
from hugetlb_quota.agent.__main__ import command_line as agent
from hugetlb_quota.api import crd
from hugetlb_quota.controller.__main__ import command_line as controller
from hugetlb_quota.controller.uninstall import command_line as uninstall
from hugetlb_quota.plugin.cli import parser as plugin
from tools.page import put, table

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "reference.md"
Schema = Mapping[str, Any]


def fields(schema: Schema, path: str = "") -> Iterator[tuple[str, str, str]]:
    """The path, type and description of every field below ``schema``."""
    for name, field in schema.get("properties", {}).items():
        if path == "" and name not in ("spec", "status"):
            continue  # metadata and so on are the same for every kind
        here = f"{path}.{name}" if path else name
        if path:
            yield here, _type(field), field.get("description", "")
        if name == "conditions":
            continue  # metav1.Condition
        yield from fields(field, here)
        yield from fields(field.get("items", {}), f"{here}[]")


def _type(field: Schema) -> str:
    if values := field.get("enum"):
        return ", ".join(f"`{value}`" for value in values)
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    kind = str(field.get("type", "object"))
    if kind == "array":
        return f"list of {_type(field['items'])}"
    if isinstance(field.get("additionalProperties"), Mapping):
        return f"map of {_type(field['additionalProperties'])}"
    return "date and time" if field.get("format") == "date-time" else kind


def flags(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Each flag with its value, and its help. Defaults that depend on the host are omitted."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to list them
        if not action.option_strings or action.dest == "help":
            continue
        value = action.metavar or (action.dest.upper() if action.nargs is None else "")
        if action.choices:
            value = "{" + ",".join(map(str, action.choices)) + "}"
        what = (action.help or "") % {**vars(action), "prog": parser.prog}
        if action.required:
            what += "; required"
        elif "default" not in what and action.default not in (
            *(None, "", True, False),
            argparse.SUPPRESS,
        ):
            what += f" (default: {action.default})"
        yield f"`{' '.join([action.option_strings[-1], str(value)]).strip()}`", what


def plugin_rows() -> Iterator[tuple[str, str, str]]:
    """The commands of the plugin with arguments, options and help; common options come first."""
    top = plugin()
    common = dict(flags(top))
    for flag, what in common.items():
        yield "all", flag, what
    (commands,) = (each for each in top._actions if isinstance(each, argparse._SubParsersAction))  # noqa: SLF001
    for name, parser in commands.choices.items():
        yield f"`{name}`", "", parser.description or ""
        for action in parser._actions:  # noqa: SLF001
            if not action.option_strings:
                values = "{" + ",".join(action.choices) + "}" if action.choices else ""
                yield f"`{name}`", f"`{action.metavar or values}`", action.help or ""
        for flag, what in flags(parser):
            if flag not in common:
                yield f"`{name}`", flag, what


def made(page: str) -> str:
    """The page with new content of every part."""
    for part, definition in (("quota", crd.quota_crd()), ("node", crd.node_crd())):
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        rows = ((f"`{path}`", kind, what) for path, kind, what in fields(schema))
        page = put(page, part, table(("field", "type", "what it is"), rows))
    for parser in (admission(), controller(), agent(), uninstall()):
        name = parser.prog.removeprefix("hugetlb-quota-")
        page = put(page, name, table(("flag", "what it is"), flags(parser)))
    headers = ("command", "argument or option", "what it is")
    return put(page, "plugin", table(headers, plugin_rows()))


def main() -> None:
    """Write the page."""
    PAGE.write_text(made(PAGE.read_text()))


if __name__ == "__main__":
    main()
