"""Command line options that all programs share, and the log.

The log goes to stderr, one line for each record, as text or as JSON with fields. Libraries log
only warnings and errors, unless the level is debug.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("text", "json")
#: The parent of all loggers of this project; other loggers are a library's.
_OURS: Final = "hugetlb_quota"
#: The attribute of a log record in which :func:`about` puts the fields.
_FIELDS: Final = "about"


def version() -> str:
    """The version of the installed package; "unknown" if the package is not installed."""
    from importlib import metadata  # the import takes ten milliseconds, and few callers need it

    try:
        return metadata.version("hugetlb-quota")
    except metadata.PackageNotFoundError:
        return "unknown"


class _Version(argparse.Action):
    """Print the version and exit; look the version up only now."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(parser.prog, version())  # noqa: T201
        parser.exit()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--version``, ``--log-level`` and ``--log-format``."""
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        default="info",
        help="the lowest level to log; debug includes libraries (default: %(default)s)",
    )
    parser.add_argument(
        "--log-format",
        choices=FORMATS,
        default="text",
        help="text, or one JSON object per line (default: %(default)s)",
    )


def add_request_timeout(parser: argparse.ArgumentParser, default: timedelta) -> None:
    """Add ``--request-timeout`` in whole seconds; the parsed value is a timedelta."""
    parser.add_argument(
        "--request-timeout",
        type=_seconds,
        default=default,
        metavar="SECONDS",
        help="kube-apiserver's --request-timeout, in seconds: an admitted pod may still be created"
        " during this time. kube-apiserver ends every write after 34 s, so that more is the same"
        f" as 34 (default: {default.total_seconds():.0f})",
    )


def _seconds(text: str) -> timedelta:
    try:
        seconds = int(text)
    except ValueError:
        seconds = 0
    if seconds < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds above 0")
    return timedelta(seconds=seconds)


def start_log(options: argparse.Namespace) -> None:
    """Log to stderr from now on, as ``options`` say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if options.log_format == "json" else _Text())
    level = logging.getLevelName(options.log_level.upper())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level if level == logging.DEBUG else max(level, logging.WARNING))
    logging.getLogger(_OURS).setLevel(level)


def about(**fields: object) -> dict[str, Any]:
    """The fields of a log record, for the logger: ``extra=about(pod=..., uid=...)``.

    The result leaves out fields that are None or empty.
    """
    return {
        _FIELDS: {name: str(value) for name, value in fields.items() if value not in (None, "")}
    }


class _Text(logging.Formatter):
    """``2026-01-31T12:00:00.123Z INFO sentence [node=n1]``.

    The brackets have the fields with values that are not in the sentence.
    """

    def format(self, record: logging.LogRecord) -> str:
        sentence = record.getMessage().replace("\n", " ")
        more = [
            f"{name}={value}" for name, value in _fields(record).items() if value not in sentence
        ]
        line = f"{_time(record)} {record.levelname} {sentence}"
        if more:
            line += f" [{' '.join(more)}]"
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return line


class _Json(logging.Formatter):
    """A JSON object: time, level, logger, message, the fields, and the exception if any."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _fields(record: logging.LogRecord) -> Mapping[str, str]:
    fields: Mapping[str, str] = getattr(record, _FIELDS, {})
    return fields


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"
