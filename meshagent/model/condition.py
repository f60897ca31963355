"""Conditions: the few things that can be wrong, as data shared by status, log, metrics and hub."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class Severity(StrEnum):
    """``error`` makes ``status`` exit 4; ``warning`` does not."""

    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that is wrong now: a stable kebab-case ``code``, what and what to do in ``text``, ``since`` in UTC."""

    code: str
    severity: Severity
    title: str
    text: str
    since: datetime


class ConditionSink(Protocol):
    """Where parts report; the tracker of agent/health implements it. ``key`` tells instances of one code apart."""

    def set(self, code: str, text: str, key: str = "") -> None: ...

    def clear(self, code: str, key: str = "") -> None: ...
