"""Ctrl-C and polite ends of the demo: the first one ends the story wherever it is, later ones wait for the clean-up.

Python raises from a signal handler at any place, also inside callbacks that swallow what they can't pass on. So the
first signal is remembered too: the story asks between two commands whether it should still go on.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from meshagent.lab.signals import ENDING


class Interrupts:
    """Whether somebody wants the story to end."""

    def __init__(self) -> None:
        self.wanted = False

    def check(self) -> None:
        """Raises ``KeyboardInterrupt`` when the end was asked for."""
        if self.wanted:
            raise KeyboardInterrupt

    def heard(self, _number: int, _frame: FrameType | None) -> None:
        """The handler: raises once; while everything is being removed, more signals change nothing."""
        if not self.wanted:
            self.wanted = True
            raise KeyboardInterrupt


@contextmanager
def listening() -> Iterator[Interrupts]:
    """Handle Ctrl-C, SIGTERM and a closed terminal alike within the block (main thread)."""
    interrupts = Interrupts()
    before = {number: signal.signal(number, interrupts.heard) for number in ENDING}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
