"""What is known of the proxy, for everybody who follows it."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Parent:
    """The epoch before: it takes nothing new and lives for its ``connections``. ``since``: when it was relieved."""

    pid: int
    epoch: int
    version: str
    since: datetime
    connections: int | None = None


@dataclass(frozen=True, slots=True)
class ProxyState:
    """``pid`` 0: none runs. ``start_time``: clock ticks after boot (proc(5)); ``since``: when this process was found
    or started; ``restarts``: deaths seen by this agent; ``adopted``: it was running before this agent; ``looping``: it
    died several times in a row and has not lived well since; ``upgrade``: version of a changed binary on disk."""

    pid: int = 0
    start_time: int = 0
    version: str = ""
    epoch: int = 0
    ready: bool = False
    restarts: int = 0
    since: datetime | None = None
    adopted: bool = False
    looping: bool = False
    parent: Parent | None = None
    upgrade: str = ""
