"""How a connection to the control plane is doing, as others see it."""

from dataclasses import dataclass
from datetime import datetime

from meshagent.model.address import HostPort


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """``since``: when ``connected`` last changed (None before the first attempt); ``last_error`` until it works.

    ``violation``: how the control plane broke the protocol lately; empty again once a stream went well for a while.
    """

    connected: bool = False
    address: HostPort | None = None
    since: datetime | None = None
    last_error: str = ""
    violation: str = ""
