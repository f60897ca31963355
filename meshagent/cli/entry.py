"""Where the ``meshagent`` program starts. ``--version`` answers before anything heavy is imported."""

import sys

from meshagent import __version__


def main() -> None:
    """Run the command line; never returns."""
    if sys.argv[1:] == ["--version"]:
        print(f"meshagent {__version__}")
        sys.exit(0)
    from meshagent.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
