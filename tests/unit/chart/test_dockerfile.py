"""The Dockerfile matches the build context and the chart. The test needs no container engine."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
TEMPLATES = ROOT / "charts" / "hugetlb-quota" / "templates"


def test_every_copied_file_is_in_the_build_context() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for source in line.split()
    }
    context = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    # A stage may copy only a part of a folder of the context.
    parts = {name for name in copied if any(name.startswith(f"{each}/") for each in context)}
    assert copied - parts == context
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_image_runs_as_the_same_user_as_the_chart() -> None:
    (user,) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    names = (TEMPLATES / "_names.tpl").read_text()
    assert (re.findall(r"runAsUser: (\d+)", names), re.findall(r"runAsGroup: (\d+)", names)) == (
        [user[0]],
        [user[1]],
    )
