"""What can be wrong with a hub, as data, and which of it is wrong now.

Few things are: a hub that can't start says so and ends, and hosts report their own conditions. Severity ``error``
makes ``meshagent hub status`` exit 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from meshagent.model.condition import Condition, Severity
from meshagent.runtime.clock import Clock
from meshagent.runtime.latest import Latest

WARNING, ERROR = Severity.WARNING, Severity.ERROR
_NOTHING_NEW = "hosts go on with what they have; enrolments, tokens and resources wait"


@dataclass(frozen=True, slots=True)
class HubConditionSpec:
    """One kind of condition; ``remedy`` is one line that says what to do."""

    code: str
    severity: Severity
    title: str
    remedy: str


_ALL = (
    HubConditionSpec("store-full", ERROR, "the disk of the hub's database is full", f"free some space; {_NOTHING_NEW}"),
    HubConditionSpec(
        "store-locked",
        ERROR,
        "another process holds the hub's database",
        f"end what holds it (fuser -v names it); {_NOTHING_NEW}",
    ),
    HubConditionSpec(
        "store-corrupt",
        ERROR,
        "the hub's database is damaged",
        f"stop the hub, then: meshagent hub restore FILE --force; {_NOTHING_NEW}",
    ),
    HubConditionSpec(
        "store-not-writable",
        ERROR,
        "the hub's database can't be written",
        f"give the hub's user its state directory back, mounted read-write; {_NOTHING_NEW}",
    ),
    HubConditionSpec(
        "store-failed",
        ERROR,
        "the hub's database refuses",
        f"look at the disk (dmesg) and at the hub's log; {_NOTHING_NEW}",
    ),
    HubConditionSpec(
        "metrics-port-taken",
        WARNING,
        "metrics and health can't be served over HTTP",
        "see who holds the port (ss -ltnp), or choose another: meshagent hub run --http HOST:PORT",
    ),
)

#: Code -> specification, in the order in which conditions are shown.
HUB_CONDITIONS: Mapping[str, HubConditionSpec] = MappingProxyType({spec.code: spec for spec in _ALL})


class Health:
    """The ``ConditionSink`` of a hub: one condition per code. Not thread-safe: report on the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.latest: Latest[tuple[Condition, ...]] = Latest(())

    def set(self, code: str, text: str, key: str = "") -> None:
        """``code`` holds; said again it keeps its start."""
        spec = HUB_CONDITIONS[code]
        known = {c.code: c for c in self.latest.value}
        since = known[code].since if code in known else self._clock.now()
        known[code] = Condition(code, spec.severity, spec.title, f"{text}: {spec.remedy}", since)
        self.latest.set(tuple(known[each] for each in HUB_CONDITIONS if each in known))

    def clear(self, code: str, key: str = "") -> None:
        """``code`` holds no longer."""
        self.latest.set(tuple(c for c in self.latest.value if c.code != code))
