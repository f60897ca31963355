"""The guard's log is its stderr: one line each; the agent or the journal keeps it."""

import sys


def say(text: str, **values: object) -> None:
    """A constant sentence, and what varies."""
    fields = " ".join(f"{key}={value!r}" for key, value in values.items())
    print(f"{text} {fields}".rstrip(), file=sys.stderr, flush=True)  # noqa: T201 the guard's log is its stderr
