"""Where the ``meshagent`` program starts. ``--version`` answers before anything heavy is imported."""

import contextlib
import os
import sys

from meshagent import __version__

_INTERRUPTED = 130


def main() -> None:
    """Run the command line; never returns."""
    if sys.argv[1:] == ["--version"]:
        print(f"meshagent {__version__}")
        sys.exit(0)
    try:
        code = _run(sys.argv[1:])
    except KeyboardInterrupt:  # Ctrl-C while 0.2 s of modules load: what it would say and return
        print("meshagent: interrupted", file=sys.stderr)
        _end_interrupted()
    if code == _INTERRUPTED:
        _end_interrupted()
    sys.exit(code)


def _run(argv: list[str]) -> int:
    from meshagent.cli import straight

    if (root := straight.root_of(argv)) is not None:
        return straight.run(root)
    from meshagent.cli.main import run

    return run(argv)


def _end_interrupted() -> None:
    """Exit with 130 whatever was interrupted.

    Where Ctrl-C met an ``exec`` of text (dataclasses are made so, while a module loads), CPython 3.11 remembers it as
    unhandled although it was caught, and ends the process by SIGINT after all.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
