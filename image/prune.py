"""Take out of the image's virtual environment what the programs never import.

`python prune.py FOLDER` is run while the image is built; FOLDER is the environment's root.
Most of it is the `kubernetes` package: one module for each of some 900 classes of the API, in
two copies (blocking and asyncio), each imported when it is first asked for by name. Kept are
those in `ROOTS` and what they import in turn. Standard library alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOTS = {
    # Leader election by a Lease. All else is sent and read as plain JSON.
    "kubernetes.aio.client": ("CoordinationV1Api", "V1Lease", "V1LeaseSpec", "V1ObjectMeta"),
    # kopf asks for these to tell objects of this library from dicts.
    "kubernetes.client": ("V1ObjectMeta", "V1OwnerReference"),
}
"""Class names, by the package that gives them."""

UNUSED = ("kubernetes/**/*_test.py", "**/tests", "**/*.pyx", "**/*.pxd", "**/*.pyi")
"""Patterns of files and folders that no program imports: tests, sources of compiled modules."""


class UnknownClassError(Exception):
    """A package does not give a class of `ROOTS`; its release has changed."""


def prune(site_packages: Path) -> int:
    """Remove what is not used below `site_packages`; returns how many bytes that were.

    Raises UnknownClassError, before anything is removed, when a root is not found.
    """
    unused = [
        path for package, names in ROOTS.items() for path in _unused(site_packages, package, names)
    ]
    for pattern in UNUSED:
        unused += [path for path in sorted(site_packages.glob(pattern)) if path.exists()]
    freed = sum(_remove(path) for path in unused)
    for record in site_packages.glob("*.dist-info/RECORD"):
        _forget_missing(record)
    return freed


def _unused(site_packages: Path, package: str, names: tuple[str, ...]) -> list[Path]:
    """The modules of a package's classes that neither `names` nor their imports lead to."""
    folder = site_packages.joinpath(*package.split("."))
    modules = dict(_exports(folder / "__init__.py"))
    if unknown := [name for name in names if name not in modules]:
        raise UnknownClassError(
            f"{package} gives no {', '.join(unknown)}; mend ROOTS in {__file__}."
        )
    imported = re.compile(
        rf"^\s*from {re.escape(package)}\.((?:api|models)\.\w+) import", re.MULTILINE
    )
    used: set[Path] = set()
    following = [modules[name] for name in names]
    while following:
        module = folder.joinpath(*following.pop().split(".")).with_suffix(".py")
        if module not in used:
            used.add(module)
            following += imported.findall(module.read_text())
    classes = [*folder.glob("api/*.py"), *folder.glob("models/*.py")]
    return [path for path in classes if path.name != "__init__.py" and path not in used]


def _exports(init: Path) -> Iterator[tuple[str, str]]:
    """Each class and its module, as "models.v1_lease", from the table of what is imported late."""
    yield from re.findall(r'"(\w+)": "\.((?:api|models)\.\w+)"', init.read_text())


def _remove(path: Path) -> int:
    if path.is_dir():
        freed = sum(_remove(each) for each in path.iterdir())
        path.rmdir()
        return freed
    size = path.lstat().st_size
    path.unlink()
    return size


def _forget_missing(record: Path) -> None:
    """Take the files that are gone out of a distribution's list of its files."""
    base = record.parent.parent
    lines = record.read_text().splitlines(keepends=True)
    there = [line for line in lines if (base / line.rsplit(",", 2)[0].strip('"')).exists()]
    record.write_text("".join(there))


def main() -> int:
    """Prune the environment named on the command line."""
    (site_packages,) = Path(sys.argv[1]).glob("lib/python3*/site-packages")
    print(f"Pruned {prune(site_packages) / 2**20:.1f} MiB that no program imports.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
