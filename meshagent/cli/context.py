"""What every command shares: ``--root``, ``-o`` and how an error leaves the program.

The two options work before or after any command name; the later wins, because each occurrence just overwrites
the setting on the outermost context.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import click

from meshagent.cli.straight import paths_below
from meshagent.model.errors import ExitCode, MeshagentError
from meshagent.model.paths import Paths

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """Filled by the shared options; ``output`` is ``table`` or ``json``."""

    root: str = ""
    output: str = "table"

    @property
    def paths(self) -> Paths:
        """The files below the chosen root (``MESHAGENT_ROOT`` when no ``--root`` was given)."""
        return paths_below(self.root)

    @property
    def json(self) -> bool:
        return self.output == "json"


def settings() -> Settings:
    """The settings of the running command."""
    return cast(Settings, click.get_current_context().find_root().obj)


def _store(name: str) -> Callable[[click.Context, click.Parameter, str | None], None]:
    def callback(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        root = context.find_root()
        if root.obj is None:
            root.obj = Settings()
        if value is not None:
            setattr(root.obj, name, value)

    return callback


def shared_options(command: F) -> F:
    """Adds ``--root DIR`` and ``-o/--output`` to a command or group."""
    for option in (
        click.option(
            "-o",
            "--output",
            type=click.Choice(["table", "json"]),
            expose_value=False,
            is_eager=True,
            callback=_store("output"),
            help="table for people, json for programs.",
        ),
        click.option(
            "--root",
            metavar="DIR",
            expose_value=False,
            is_eager=True,
            callback=_store("root"),
            help="Prefix of /etc, /var/lib and /run (env MESHAGENT_ROOT).",
        ),
    ):
        command = option(command)
    return command


def emit(data: object) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(data, ensure_ascii=False))


def say(answer: object, line: str) -> None:
    """The answer for programs, one line for people."""
    if settings().json:
        emit(answer)
    else:
        click.echo(line)


def report(error: MeshagentError, as_json: bool) -> ExitCode:
    """The error on stderr, in the shape of the contract; returns the exit code."""
    if as_json:
        click.echo(json.dumps({"error": error.as_dict()}), err=True)
    else:
        click.echo(f"meshagent: {error.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
    return error.exit_code


def progress(text: str) -> None:
    """One line of what is going on, to stderr, only where a person watches."""
    if sys.stderr.isatty() and not settings().json:
        click.echo(click.style(f"… {text}", dim=True), err=True)
