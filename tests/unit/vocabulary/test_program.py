"""The version and the log, which all programs share."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest

from hugetlb_quota.program import about, add_options, add_request_timeout, start_log, version

Lines = list[str]
THEIRS = ("theirs debug", "theirs info", "theirs error")


@pytest.fixture(autouse=True)
def _restored_loggers() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("hugetlb_quota")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level = before[0], before[1]
    ours.setLevel(before[2])


def start(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    start_log(parser.parse_args(arguments))


def test_text_is_one_line_with_the_fields_that_the_sentence_lacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    start()
    logging.getLogger("hugetlb_quota.x").info(
        "Pod %s\nis late.", "ns/a", extra=about(pod="ns/a", uid="u1", node="", quota=None)
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("Z INFO Pod ns/a is late. [uid=u1]")


def test_json_is_an_object_a_line_with_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    start("--log-format=json")
    logger = logging.getLogger("hugetlb_quota.x")
    logger.warning("Two\nlines.", extra=about(pod="ns/a", uid="u1"))
    try:
        raise ValueError("of a bug")
    except ValueError:
        logger.exception("Unforeseen.")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "warning",
        "logger": "hugetlb_quota.x",
        "message": "Two\nlines.",
        "pod": "ns/a",
        "uid": "u1",
    }
    assert second["exception"].endswith("ValueError: of a bug")


@pytest.mark.parametrize(
    ("level", "logged"),
    [
        ("debug", ["ours debug", "ours info", "ours error", *THEIRS]),
        ("info", ["ours info", "ours error", "theirs error"]),
        ("error", ["ours error", "theirs error"]),
    ],
)
def test_libraries_log_only_warnings_unless_the_level_is_debug(
    level: str, logged: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    start(f"--log-level={level}")
    for owner, name in (("ours", "hugetlb_quota.x"), ("theirs", "kopf.y")):
        logger = logging.getLogger(name)
        logger.debug("%s debug", owner)
        logger.info("%s info", owner)
        logger.error("%s error", owner)
    assert [line.split(" ", 2)[2] for line in capsys.readouterr().err.splitlines()] == logged


@pytest.mark.parametrize("program", ["admission", "controller", "agent"])
def test_every_program_prints_its_version(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"hugetlb_quota.{program}", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, f"hugetlb-quota-{program} {version()}\n")


def test_the_log_has_no_line_about_a_librarys_handler() -> None:
    import kopf

    from hugetlb_quota.controller.deletion import _is_unexpected

    def record(error: Exception | None) -> logging.LogRecord:
        info = None if error is None else (type(error), error, None)
        return logging.LogRecord("kopf.objects", logging.INFO, "", 0, "Handler", (), info)

    assert not _is_unexpected(record(None))
    assert not _is_unexpected(record(kopf.TemporaryError("waits")))
    assert _is_unexpected(record(KeyError("a bug")))


def request_timeout(*words: str) -> timedelta:
    parser = argparse.ArgumentParser()
    add_request_timeout(parser, timedelta(seconds=60))
    found: timedelta = parser.parse_args(words).request_timeout
    return found


def test_the_request_timeout_is_in_seconds() -> None:
    assert request_timeout() == timedelta(seconds=60)
    assert request_timeout("--request-timeout=90") == timedelta(seconds=90)


@pytest.mark.parametrize("wrong", ["0", "-5", "60s", "1.5", ""])
def test_a_reservation_lives_for_a_whole_number_of_seconds(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        request_timeout(f"--request-timeout={wrong}")
    assert f"{wrong!r} is not a whole number of seconds above 0" in capsys.readouterr().err
