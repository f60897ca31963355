"""The control plane's time as far as we know it, carried on by our monotonic clock."""

from datetime import UTC, datetime, timedelta

from meshagent.agent.identity.schedule import HubTime
from meshagent.runtime.clock import Clock

#: More difference than this between our wall clock and the hub's is worth a condition: Envoy judges validity by ours.
SKEW_LIMIT = timedelta(minutes=5)


class HubClock:
    """Answers "what time is it at the control plane"; before the first reading, our wall clock has to do."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reading: HubTime | None = None

    def heard(self, unix_ms: int) -> None:
        """The control plane just said that it is ``unix_ms`` (milliseconds since 1970); nonsense is ignored."""
        try:
            reading = datetime.fromtimestamp(unix_ms / 1000, UTC)
        except (ValueError, OverflowError, OSError):
            return
        self._reading = HubTime(reading, self._clock.monotonic())

    def now(self) -> datetime:
        """Aware UTC."""
        return self._reading.at(self._clock.monotonic()) if self._reading else self._clock.now()

    @property
    def wall(self) -> datetime:
        """What this host's programs take for now: Envoy judges certificates by it. Aware UTC."""
        return self._clock.now()

    @property
    def skew(self) -> timedelta:
        """How far our wall clock is ahead of the control plane's; zero while unknown."""
        return self._clock.now() - self.now()
