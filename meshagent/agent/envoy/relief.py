"""Looks after the epoch that was relieved: shows what it still serves, ends it when that is nothing, or after a day.

It can't be asked any more (Envoy closes the older epoch's admin interface), so its sockets tell.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from meshagent.agent.envoy import farewell, handover
from meshagent.agent.envoy.ending import admin_socket, connected, in_use
from meshagent.agent.envoy.launch import PARENT_SECONDS
from meshagent.agent.envoy.record import Older, Records
from meshagent.agent.envoy.state import Parent
from meshagent.machine import files, services
from meshagent.machine.segments import segment
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths
from meshagent.runtime.clock import boot_seconds

log = structlog.get_logger()

_LOOK_SECONDS = 1.0
#: It lives at least until the newer one has said "end" to it (``launch.PARENT_SECONDS``): a message that can't be
#: delivered makes that one abort. Meanwhile peers learn with their next request to use another connection.
LEAST_SECONDS = PARENT_SECONDS + 2.0
#: So many looks in a row without a connection in use before it is ended.
IDLE_LOOKS = 3
#: The longest that connections are kept by an old epoch: a day.
MOST_SECONDS = 86_400.0


class Relief:
    """``show`` hears about the older epoch whenever something about it changed, None once it is gone."""

    def __init__(self, paths: Paths, records: Records, show: Callable[[Parent | None], None]) -> None:
        self._paths, self._records, self._show = paths, records, show
        self._idle, self._told = 0, False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            record = self._records.load()
            if record is not None and record.parent is not None:
                await self._look(record.parent)
            else:
                self._idle, self._told = 0, False
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self, parent: Older) -> None:
        age = boot_seconds() - parent.since_boot if parent.since_boot else time.time() - parent.since
        if handover.ours(self._paths, parent.handle, parent.epoch):
            if not self._told:
                with contextlib.suppress(MeshagentError):  # a full disk: they go when they are used next
                    farewell.write(self._paths, parent.base_id, parent.epoch, go=True)
                self._told = True
            found = await connected()
            count = None if found is None else in_use(found, parent.handle.pid)
            since = datetime.fromtimestamp(parent.since, UTC)
            self._show(Parent(parent.handle.pid, parent.epoch, parent.version, since, count))
            self._idle = self._idle + 1 if count == 0 else 0
            if age < MOST_SECONDS and (age < LEAST_SECONDS or self._idle < IDLE_LOOKS):
                return
            log.info("older proxy ends", pid=parent.handle.pid, epoch=parent.epoch, connections=count)
            await services.stop_async(parent.handle)
        self._forget(parent)

    def _forget(self, parent: Older) -> None:
        """Its files go; the record is read again: it may have changed while the process ended."""
        self._idle, self._told = 0, False
        record = self._records.load()
        if record is None or record.parent != parent:
            return
        self._records.save(replace(record, parent=None))
        self._show(None)
        if parent.epoch != record.epoch:  # the same after the newer one died and a fresh one counts from 0
            files.remove_file(admin_socket(self._paths, parent.epoch))
            files.remove_file(self._paths.run / f"proxy-{parent.epoch}.json")
        files.remove_file(farewell.path(self._paths, parent.base_id, parent.epoch))
        if parent.base_id != record.base_id:
            files.remove_file(segment(parent.base_id))
        log.info("older proxy is gone", pid=parent.handle.pid, epoch=parent.epoch)
