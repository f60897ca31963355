"""Structured log lines on stderr: a constant text, and values in fields.

``kv`` is for people (``time level event key=value``), ``json`` for collectors, ``journal`` leaves the time out and
puts the syslog priority in front, as the journal reads it (sd-daemon(3)). ``auto`` takes journal when systemd connected
stderr to it, kv otherwise. Fields whose name says that they hold a secret are never written.
"""

import json
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog

from meshagent.model.errors import UsageError

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
FORMATS = ("auto", "journal", "kv", "json")

#: A public key or certificate is fine; a name such as token_id says which token without being it.
_SECRET = re.compile(r"(?i)(^|_)(token|secret|password|passwd|private_key|key_pem|authorization|cookie)$")
_PLAIN = re.compile(r"[^\s\"=]+")
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}

Event = MutableMapping[str, Any]


def set_up(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:
    """Send the log of this process to ``stream`` (default stderr). Raises ``UsageError`` for unknown words."""
    if level not in LEVELS or format not in FORMATS:
        known = ", ".join(LEVELS if level not in LEVELS else FORMATS)
        raise UsageError("bad-log-setting", f"unknown log level or format {level}/{format}", hint=f"known: {known}")
    chosen = _automatic() if format == "auto" else format
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            redact,
            {"kv": _as_kv, "json": _as_json, "journal": _as_journal}[chosen],
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=stream or sys.stderr),
        cache_logger_on_first_use=False,  # a reload may change level and format
    )


def redact(_: Any, __: str, event: Event) -> Event:
    """Replace what secret-looking fields hold, also inside mappings that are a field's value."""
    return {key: _redacted(key, value) for key, value in event.items()}


def _redacted(key: str, value: Any) -> Any:
    if _SECRET.search(key):
        return "<redacted>"
    if isinstance(value, Mapping):
        return {str(inner): _redacted(str(inner), held) for inner, held in value.items()}
    return value


def _automatic() -> str:
    """JOURNAL_STREAM names device and inode of the journal's socket; stderr may have been redirected since."""
    try:
        seen = os.fstat(2)
    except OSError:
        return "kv"
    return "journal" if os.environ.get("JOURNAL_STREAM") == f"{seen.st_dev}:{seen.st_ino}" else "kv"


def _as_kv(_: Any, __: str, event: Event) -> str:
    return f"{event.pop('time')} {event.pop('level'):<7} {_fields(event)}"


def _as_journal(_: Any, __: str, event: Event) -> str:
    del event["time"]
    level = event.pop("level")
    priority = f"<{_PRIORITIES.get(level, 6)}>"
    return "\n".join(f"{priority}{line}" for line in _fields(event).splitlines())


def _as_json(_: Any, __: str, event: Event) -> str:
    return json.dumps(event, default=str, ensure_ascii=False)


def _fields(event: Event) -> str:
    trace = event.pop("exception", "")
    words = [str(event.pop("event")), *(f"{key}={_value(value)}" for key, value in event.items())]
    return " ".join(words) + (f"\n{trace}" if trace else "")


def _value(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
