"""Where the ``meshagent`` program starts. ``--version`` answers before anything heavy is imported."""

import sys

from meshagent import __version__


def main() -> None:
    """Run the command line; never returns."""
    if sys.argv[1:] == ["--version"]:
        print(f"meshagent {__version__}")
        sys.exit(0)
    try:
        from meshagent.cli.main import run
    except KeyboardInterrupt:  # Ctrl-C while 0.2 s of modules load: what run() would say and return
        sys.exit(_interrupted())
    sys.exit(run(sys.argv[1:]))


def _interrupted() -> int:
    print("meshagent: interrupted", file=sys.stderr)
    return 130


if __name__ == "__main__":
    main()
