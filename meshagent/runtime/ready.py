"""Ready when every named gate is open; whoever asks hears which ones are not."""

from meshagent.runtime.latest import Latest


class Ready:
    """Gates are added before the start and opened one by one; a gate may close again (a lost listener)."""

    def __init__(self, *gates: str) -> None:
        #: The names of the closed gates, in the order they were added: empty means ready.
        self.waiting: Latest[tuple[str, ...]] = Latest(gates)
        self._order = list(gates)

    @property
    def ready(self) -> bool:
        return not self.waiting.value

    def add(self, gate: str) -> None:
        """Add a closed gate; harmless when there is one of that name."""
        if gate not in self._order:
            self._order.append(gate)
            self._set({*self.waiting.value, gate})

    def open(self, gate: str) -> None:
        """This part can do its work now."""
        self._known(gate)
        self._set(set(self.waiting.value) - {gate})

    def close(self, gate: str) -> None:
        """This part can't do its work any more."""
        self._known(gate)
        self._set({*self.waiting.value, gate})

    async def wait(self) -> None:
        """Return when all gates are open at once."""
        async for waiting in self.waiting.watch():
            if not waiting:
                return

    def _known(self, gate: str) -> None:
        if gate not in self._order:
            raise KeyError(f"there is no gate {gate!r}, only {', '.join(self._order)}")

    def _set(self, closed: set[str]) -> None:
        self.waiting.set(tuple(gate for gate in self._order if gate in closed))
