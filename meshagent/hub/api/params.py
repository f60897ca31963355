"""Parameters of the administrators' socket: read strictly, so that a misspelt one is an error and not a default."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshagent.model.errors import UsageError

_DURATION = re.compile(r"([0-9]{1,9})([smhd])", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(slots=True)
class Params:
    """Take what is expected, then ``end``: what is left over is an error."""

    _given: dict[str, Any]

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = dict(given)

    def text(self, name: str, default: str | None = "") -> str:
        """``default`` None = required; null counts as absent."""
        value = self._given.pop(name, None)
        value = default if value is None else value
        if not isinstance(value, str) or len(value) > 253:
            raise _wrong(name, "text of at most 253 characters")
        return value

    def integer(self, name: str, default: int) -> int:
        value = self._given.pop(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(name, "a whole number")
        return value

    def seconds(self, name: str, default: float) -> float:
        """A number of seconds, or text such as ``90s``, ``15m``, ``1h``, ``2d``."""
        value = self._given.pop(name, default)
        if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
            return float(match[1]) * _UNITS[match[2]]
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e9:
            raise _wrong(name, "a time such as 15m, 1h or 2d")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self._given.pop(name, False)
        if not isinstance(value, bool):
            raise _wrong(name, "true or false")
        return value

    def texts(self, name: str) -> tuple[str, ...] | None:
        """None when absent or null."""
        value = self._given.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > 256 or not all(isinstance(v, str) for v in value):
            raise _wrong(name, "a list of texts")
        return tuple(value)

    def document(self, name: str) -> str:
        """Text of any length (the socket bounds it)."""
        value = self._given.pop(name, None)
        if not isinstance(value, str):
            raise _wrong(name, "text")
        return value

    def end(self) -> None:
        if self._given:
            raise UsageError("unknown-parameter", f"unknown parameter {min(self._given)[:80]!r}")


def _wrong(name: str, what: str) -> UsageError:
    return UsageError("bad-parameter", f"parameter {name} must be {what}")
