"""The file by which an epoch is told to let its idle connections go; Envoy follows it while it runs.

Unlike the admin interface it also reaches the older of two epochs, whose admin interface is closed.
"""

from pathlib import Path

from meshagent.machine import files
from meshagent.model.paths import Paths


def path(paths: Paths, base_id: int, epoch: int) -> Path:
    """Beside the bootstrap, where only root writes."""
    return paths.run / f"proxy-{base_id}-{epoch}.drain"


def write(paths: Paths, base_id: int, epoch: int, *, go: bool) -> Path:
    """``go``: idle HTTP connections hear GOAWAY or are closed from now on. Envoy notices a file that is moved there."""
    file = path(paths, base_id, epoch)
    files.write_atomic(file, "1\n" if go else "0\n", mode=0o644, durable=False)
    return file


def clean(paths: Paths, keep: int = 0) -> None:
    """Remove the files of all epochs but those with the number ``keep``."""
    for file in paths.run.glob("proxy-*-*.drain"):
        if not file.name.startswith(f"proxy-{keep}-"):
            files.remove_file(file, durable=False)
