"""Tells the story while it happens: a line per step with its time, details below, quiet for programs."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import click

from meshagent.model.errors import MeshagentError

_ERASE_LINE = "\r\x1b[K"


@dataclass(slots=True)
class StepResult:
    """What became of one step; ``seconds`` of wall time."""

    name: str
    ok: bool = False
    detail: str = ""
    seconds: float = 0.0


class DemoError(MeshagentError):
    """A check of the demo did not hold; the message is the evidence."""

    def __init__(self, message: str) -> None:
        super().__init__("demo-check", message, hint="run it again with --keep to look around")


def check(held: object, evidence: str) -> None:
    """Raises ``DemoError`` with ``evidence`` unless ``held``."""
    if not held:
        raise DemoError(evidence)


class Narrator:
    """Collects results; tells them on stdout unless ``quiet``. Colours and progress only on a terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.results: list[StepResult] = []
        self._terminal = not quiet and sys.stdout.isatty()
        self._colour = self._terminal and not os.environ.get("NO_COLOR")

    def say(self, text: str = "") -> None:
        """A line of the story."""
        if not self.quiet:
            click.echo(text)

    def note(self, text: str) -> None:
        """Something seen within a step."""
        self.say(f"    {text}")

    def command(self, host: str, line: str) -> None:
        """A command as a person would type it on ``host``."""
        self.say(f"    {self._style(f'{host}#', fg='cyan')} {line}")

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show what is being waited for, on a terminal, as long as it lasts."""
        if self._terminal:
            click.echo(f"    {self._style(f'… {what}', dim=True)}", nl=False)
        try:
            yield
        finally:
            if self._terminal:
                click.echo(_ERASE_LINE, nl=False)

    @contextmanager
    def step(self, number: str, name: str, title: str) -> Iterator[StepResult]:
        """Run a step: its end, good or bad, becomes a result. Errors pass through."""
        result = StepResult(name)
        self.results.append(result)
        self.say(f"\n{number} {self._style(name, bold=True)}: {title}")
        sys.stdout.flush()
        began = time.monotonic()
        try:
            yield result
            result.ok = True
        except BaseException as error:
            result.detail = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or repr(error)
            raise
        finally:
            result.seconds = round(time.monotonic() - began, 2)
            mark = self._style("ok", fg="green") if result.ok else self._style("FAILED", fg="red")
            self.say(f"  {mark} {result.detail} ({result.seconds:.1f} s)")

    def as_dict(self) -> dict[str, Any]:
        """The contract's JSON shape."""
        return {
            "ok": bool(self.results) and all(r.ok for r in self.results),
            "steps": [asdict(r) for r in self.results],
        }

    def _style(self, text: str, **how: Any) -> str:
        return click.style(text, **how) if self._colour else text
