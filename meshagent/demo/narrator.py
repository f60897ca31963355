"""Tells the story while it happens: a line per step with its time, details below, quiet for programs."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import click

from meshagent.model.errors import MeshagentError


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
    """Collects results; tells them on stdout unless ``quiet``."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.results: list[StepResult] = []

    def say(self, text: str = "") -> None:
        """A line of the story."""
        if not self.quiet:
            click.echo(text)

    def note(self, text: str) -> None:
        """Something seen within a step."""
        self.say(f"    {text}")

    def command(self, host: str, line: str) -> None:
        """A command as a person would type it on ``host``."""
        if not self.quiet:
            click.echo(f"    {click.style(host, dim=True)}# {line}")

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[StepResult]:
        """Run a step: its end, good or bad, becomes a result. Errors pass through."""
        result = StepResult(name)
        self.results.append(result)
        self.say(f"\n{click.style(name, bold=True)}: {title}")
        sys.stdout.flush()
        began = time.monotonic()
        try:
            yield result
            result.ok = True
        except BaseException as error:
            result.detail = str(error) or type(error).__name__
            raise
        finally:
            result.seconds = round(time.monotonic() - began, 2)
            mark = click.style("ok", fg="green") if result.ok else click.style("FAILED", fg="red")
            self.say(f"  {mark} {result.detail} ({result.seconds:.1f} s)")

    def as_dict(self) -> dict[str, Any]:
        """The contract's JSON shape."""
        return {
            "ok": bool(self.results) and all(r.ok for r in self.results),
            "steps": [asdict(r) for r in self.results],
        }
