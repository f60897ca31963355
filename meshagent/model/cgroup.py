"""A systemd unit as the kernel knows it: a control group of version 2."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Cgroup:
    """``path`` as nft takes it, relative to /sys/fs/cgroup; ``level`` counts from the root of the v2 tree; ``id`` is
    what a rule stores, another one whenever the unit starts."""

    unit: str
    path: str
    level: int
    id: int
