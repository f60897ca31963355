"""Hears at once when the guard's process ends: with policy open the rules are gone with it."""

import asyncio
import os


class Presence:
    """Follows one process by a pidfd on the running loop; ``close`` when done."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()
        self._pid, self._descriptor = 0, -1

    def follow(self, pid: int) -> None:
        """Follow this process from now on, instead of the one before; harmless when it is the same."""
        if pid == self._pid:
            return
        self.close()
        self._gone.clear()
        try:
            self._descriptor = os.pidfd_open(pid)
        except OSError:
            self._gone.set()
            return
        self._pid = pid
        asyncio.get_running_loop().add_reader(self._descriptor, self._ended)

    async def gone(self) -> None:
        """Returns once when the process has ended; the next call waits for the end of its successor."""
        await self._gone.wait()
        self._gone.clear()

    def close(self) -> None:
        """Follow nothing."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
        self._pid, self._descriptor = 0, -1

    def _ended(self) -> None:
        self.close()
        self._gone.set()
