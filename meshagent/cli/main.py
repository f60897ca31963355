"""Names the commands and turns every way to end into an exit code of the contract."""

import errno
import importlib
import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from meshagent import __version__
from meshagent.cli.context import Settings, report, shared_options
from meshagent.model.errors import ExitCode, MeshagentError, UsageError

#: command -> (module, attribute). Modules are imported when their command runs: `status` must not pay for `demo`.
COMMANDS = {
    "enroll": ("enroll", "enroll"),
    "leave": ("enroll", "leave"),
    "run": ("daemon", "run"),
    "plan": ("plan", "plan"),
    "posture": ("host", "posture"),
    "confirm": ("host", "confirm"),
    "status": ("status", "status"),
    "peers": ("host", "peers"),
    "service": ("service", "service"),
    "capture": ("capture", "capture"),
    "certs": ("host", "certs"),
    "proxy": ("proxy", "proxy"),
    "hub": ("hub", "hub"),
    "demo": ("demo", "demo"),
}


class LazyGroup(click.Group):
    """Lists all commands, imports one."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(f"meshagent.cli.{module}"), attribute)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: meshagent enroll hub.example:15012 file:/root/token",
)
@click.version_option(__version__, prog_name="meshagent", message="%(prog)s %(version)s")
@shared_options
def root() -> None:
    """Puts this Linux host in a service mesh, and takes it out again without a trace."""


def run(argv: list[str]) -> int:
    """Run one command line; returns the exit code. Never raises, never shows a traceback unless asked."""
    chosen = Settings()
    try:
        result: Any = root.main(args=argv, prog_name="meshagent", standalone_mode=False, obj=chosen)
        sys.stdout.flush()  # here, where a full disk is still an error with a name
        return int(result) if isinstance(result, int) else ExitCode.OK
    except BaseException as error:
        return explained(error, lambda: chosen.json or _asks_for_json(argv))


def explained(error: BaseException, as_json: Callable[[], bool] = lambda: False) -> int:
    """Tells how a command ended; returns the exit code. Raises what only ends the process (``SystemExit``)."""
    try:
        raise error
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return ExitCode.USAGE
    except click.ClickException as error:
        return report(_usage(error), as_json())
    except (click.Abort, KeyboardInterrupt):
        return report(MeshagentError("interrupted", "interrupted", exit_code=ExitCode.INTERRUPTED), as_json())
    except BrokenPipeError:
        # The reader (head, less) went away: no more output is wanted, also none from the interpreter's own flush.
        _discard_output()
        return ExitCode.FAILED
    except MeshagentError as error:
        _show_traceback()
        return report(error, as_json())
    except Exception as error:  # the last line of defence: a person never sees a traceback
        _show_traceback()
        return report(_unexpected(error), as_json())


def _asks_for_json(argv: list[str]) -> bool:
    """A wrong option ends the parsing before ``-o json`` after it was seen; who wrote it still wants it."""
    words = " ".join(argv).replace("=", " ").split()
    chosen = [after for word, after in itertools.pairwise(words) if word in ("-o", "--output")]
    return "-ojson" in words or chosen[-1:] == ["json"]


def _unexpected(error: Exception) -> MeshagentError:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        _discard_output()  # files of ours report a full disk themselves, with their name: this was stdout
        return MeshagentError("no-output", f"could not write the answer: {error.strerror}", hint="free some space")
    name = type(error).__name__
    hint = "run it again with MESHAGENT_DEBUG=1 and report what it prints"
    return MeshagentError("internal", f"unexpected: {name}: {' '.join(str(error).split())}", hint=hint)


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _show_traceback() -> None:
    if os.environ.get("MESHAGENT_DEBUG"):
        import traceback

        traceback.print_exc()


def _usage(error: click.ClickException) -> UsageError:
    command = getattr(error, "ctx", None)
    path = command.command_path if command else "meshagent"
    return UsageError("usage", error.format_message(), hint=f"see: {path} --help")
