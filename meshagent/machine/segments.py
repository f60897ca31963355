"""Where Envoy keeps the shared memory of its hot restart: a file that outlives an Envoy which was killed."""

from pathlib import Path

#: Where shm_open(3) puts a segment. All network namespaces of a machine share it.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - not a temporary file


def segment(base_id: int) -> Path:
    """The file of the Envoy with that number (``--base-id``, which Envoy multiplies by ten)."""
    return SHARED_MEMORY / f"envoy_shared_memory_{base_id * 10}"
