"""A ``ConditionSink`` that remembers what holds, without delays."""

from meshagent.runtime.latest import Latest


class Recorder:
    """``held``: (code, key) -> text."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], str] = {}
        self.changed = Latest(0)

    def set(self, code: str, text: str, key: str = "") -> None:
        self.held[code, key] = text
        self.changed.set(self.changed.value + 1)

    def clear(self, code: str, key: str = "") -> None:
        if self.held.pop((code, key), None) is not None:
            self.changed.set(self.changed.value + 1)

    def codes(self) -> list[str]:
        return sorted({code for code, _ in self.held})

    async def holding(self, code: str, key: str = "") -> str:
        """Wait until ``code`` holds; its text."""
        async for _ in self.changed.watch():
            if (code, key) in self.held:
                break
        return self.held[code, key]
