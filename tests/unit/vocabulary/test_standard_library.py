"""The folder operator/ must never shadow the standard library's module."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_import_operator_from_the_root_gives_the_standard_library() -> None:
    program = "import operator; print(operator.__file__, operator.add(1, 2))"
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed.endswith("operator.py 3\n")
    assert not printed.startswith(str(ROOT / "operator"))


def test_the_folder_is_not_a_package() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
