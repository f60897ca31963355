"""Numbered SQL files, applied in order, each in one transaction; ``PRAGMA user_version`` holds the last one applied."""

from importlib.resources import files


def migrations() -> tuple[tuple[int, str], ...]:
    """``(number, SQL)`` in order; the files are named ``0001_what.sql``."""
    found = (entry for entry in files(__name__).iterdir() if entry.name.endswith(".sql"))
    return tuple(sorted((int(entry.name[:4]), entry.read_text("utf-8")) for entry in found))
