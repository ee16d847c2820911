"""Remove from the image's virtual environment the modules that the programs never import.

The build of the image runs `python prune.py FOLDER`; FOLDER is the root of the environment.
The `kubernetes` package has most of these modules: one for each of some 900 API classes, in two
copies (blocking and asyncio). It imports a module when a program first uses the class. This
script keeps the classes in `ROOTS` and the modules that these import. It uses only the standard
library.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOTS = {
    # For the leader election. The programs send and read all other objects as plain JSON.
    "kubernetes.aio.client": ("CoordinationV1Api", "V1Lease", "V1LeaseSpec", "V1ObjectMeta"),
    # kopf imports these to distinguish objects of this library from dicts.
    "kubernetes.client": ("V1ObjectMeta", "V1OwnerReference"),
}
"""Class names, by the package that exports them."""

UNUSED = ("kubernetes/**/*_test.py", "**/tests", "**/*.pyx", "**/*.pxd", "**/*.pyi")
"""Glob patterns of files and folders that no program imports: tests, sources of C extensions."""


class UnknownClassError(Exception):
    """A package does not export a class of `ROOTS`; a new release of the package moved it."""


def prune(site_packages: Path) -> int:
    """Remove the unused modules below `site_packages`; return their size in bytes.

    Raises UnknownClassError, before it removes anything, if a root is not found.
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
    """The modules of a package's classes that the classes `names` do not import."""
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
    """Each class and its module ("models.v1_lease"), from the package's table of lazy imports."""
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
    """Remove the missing files from a distribution's RECORD."""
    base = record.parent.parent
    lines = record.read_text().splitlines(keepends=True)
    existing = [line for line in lines if (base / line.rsplit(",", 2)[0].strip('"')).exists()]
    record.write_text("".join(existing))


def main() -> int:
    """Prune the environment in the first argument."""
    (site_packages,) = Path(sys.argv[1]).glob("lib/python3*/site-packages")
    print(f"Pruned {prune(site_packages) / 2**20:.1f} MiB that no program imports.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
