"""Finding the proxy that an earlier agent left, and only that one.

What is on record is taken with proof: the process with that start time and executable, that also listens on the admin
socket of that epoch. A proxy of this root that isn't on record was started by an agent killed right after:
the coming epoch of a hot restart is taken over, any other is ended, because it would sit on our ports.
"""

import asyncio
import os
import time
from dataclasses import replace

import structlog

from meshagent.agent.envoy import handover, listening
from meshagent.agent.envoy.admin import Admin, AdminError
from meshagent.agent.envoy.ending import admin_socket
from meshagent.agent.envoy.epochs import Found, Listening, Start, on_start
from meshagent.agent.envoy.record import Older, Record, Records
from meshagent.machine import services
from meshagent.machine.services import Handle
from meshagent.model.paths import Paths
from meshagent.runtime.clock import boot_seconds

log = structlog.get_logger()

#: An epoch in the middle of its start has no admin socket yet.
_PATIENCE = 5.0


async def adopt(paths: Paths, records: Records, uid: int) -> tuple[Record, int] | None:
    """The newest proven epoch with its pidfd, for the caller to close; None when there is none to go on with."""
    record = records.load()
    if record is not None and not record.coming and record.parent is None:
        proven = await _proven(paths, record)  # the usual case, within milliseconds
        if proven is not None:
            return record, proven
    found = await asyncio.to_thread(lambda: list(handover.running(paths, uid)))
    record = _with_coming(_without_strangers(paths, records.load()), found)
    chosen = await _choose(paths, record) if record is not None else None
    if chosen is not None:
        record = chosen[0]
    if record is not None:
        records.save(record)
    await _end_others(found, record.handles() if chosen is not None and record is not None else _kept(record))
    return chosen


def _without_strangers(paths: Paths, record: Record | None) -> Record | None:
    """A parent that isn't there any more, or never was ours, is no parent."""
    if record is None or record.parent is None or handover.ours(paths, record.parent.handle, record.parent.epoch):
        return record
    return replace(record, parent=None)


def _with_coming(record: Record | None, found: list[tuple[int, Handle]]) -> Record | None:
    """A hot restart was under way: the coming epoch counts as the newest if it was started."""
    if record is None or not record.coming:
        return record
    coming = next((handle for epoch, handle in found if epoch == record.epoch + 1), None)
    if coming is None:
        return replace(record, coming="")
    return record.relieved_by(coming, record.coming, time.time(), boot_seconds())


async def _choose(paths: Paths, record: Record) -> tuple[Record, int] | None:
    """The newest epoch that is proven; the one before it when the newest never came to serve."""
    parent = record.parent
    pidfd = await _proven(paths, record, _PATIENCE if parent else 0.0)
    if pidfd is not None:
        return record, pidfd
    if parent is None:
        return None
    before = _before(record, parent)
    pidfd = await _proven(paths, before)
    return (before, pidfd) if pidfd is not None else None


def _before(record: Record, parent: Older) -> Record:
    return Record(parent.handle, parent.version, parent.epoch, parent.base_id, record.draining)


def _kept(record: Record | None) -> tuple[Handle, ...]:
    """A parent whose successor died lives on for its connections; the proxy that starts anew takes the rest."""
    return (record.parent.handle,) if record is not None and record.parent is not None else ()


async def _proven(paths: Paths, record: Record, patience: float = 0.0) -> int | None:
    """A pidfd of the recorded process when it is ours beyond doubt and wasn't told to go."""
    pidfd = services.adopt(record.handle)
    if pidfd is None:
        return None
    owns = await _owns(paths, record, patience)
    if on_start(Found(True, owns, record.draining)) is Start.ADOPT:
        return pidfd
    os.close(pidfd)
    return None


async def _owns(paths: Paths, record: Record, patience: float) -> bool:
    """That very process listens on the admin socket. One whose admin interface was closed by a successor that never
    came to serve still is the process on record, and it serves: ending it would cut every connection."""
    admin = Admin(admin_socket(paths, record.epoch))
    deadline = time.monotonic() + patience
    while True:
        try:
            return await admin.owner() == record.handle.pid
        except AdminError:
            known = not patience and handover.ours(paths, record.handle, record.epoch)
            if known and await listening.probe() is Listening.ANSWERS:
                return True
        if time.monotonic() >= deadline or not services.alive(record.handle):
            return False
        await asyncio.sleep(0.02)


async def _end_others(found: list[tuple[int, Handle]], kept: tuple[Handle, ...]) -> None:
    for _, handle in found:
        if handle not in kept:
            log.warning("a proxy that is not on record is ended", pid=handle.pid)
            await services.stop_async(handle)
