"""Last-known-good on disk: what was in use, so that a host boots into its mesh while the control plane is away.

One file, replaced atomically: a line of JSON (format, checksum, when), then the resources as the delta responses they
could have come in. Anything that doesn't check out is set aside, never fatal, never half used. Writes follow changes
with a short delay, because a push of many resources changes the state many times within milliseconds.
"""

import asyncio
import contextlib
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import structlog
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse
from google.protobuf.message import DecodeError

from meshagent.machine import files
from meshagent.model.condition import ConditionSink
from meshagent.model.errors import MeshagentError
from meshagent.protocol.entry import Entry, Snapshot
from meshagent.runtime.clock import Clock
from meshagent.runtime.latest import Latest

log = structlog.get_logger()

FORMAT = 1
DAMAGED = "cache-damaged"
UNSAVED = "cache-not-saved"

#: As much as a session may hold (protocol.types.MAX_HELD_BYTES) and some.
MAX_FILE = 300 << 20
MAX_HEADER = 4096

#: Seconds between the first unsaved change and the write.
DELAY = 0.5

_LENGTH = struct.Struct(">I")


class Cache:
    """The file at ``path``. ``saved_at`` is when what it holds was written, None while it holds nothing."""

    def __init__(self, path: Path, clock: Clock, conditions: ConditionSink, *, delay: float = DELAY) -> None:
        self.saved_at: Latest[datetime | None] = Latest(None)
        self._path = path
        self._clock = clock
        self._conditions = conditions
        self._delay = delay
        self._pending: Callable[[], Snapshot] | None = None
        self._news = asyncio.Event()

    def load(self) -> Snapshot:
        """What was saved; empty when there is nothing, or nothing that can be trusted."""
        try:
            data = files.read_bounded(self._path, MAX_FILE)
        except MeshagentError as error:
            self._conditions.set(DAMAGED, error.message)
            return {}
        if data is None:
            return {}
        try:
            snapshot, saved_at = decode(data)
        except ValueError as error:
            self._set_aside(str(error))
            return {}
        self.saved_at.set(saved_at)
        return snapshot

    def save(self, snapshot: Callable[[], Snapshot]) -> None:
        """Write soon what ``snapshot`` gives then: it is asked once for many changes."""
        self._pending = snapshot
        self._news.set()

    async def run(self) -> None:
        """Write behind, until cancelled; then once more what is unsaved."""
        try:
            while True:
                await self._news.wait()
                await asyncio.sleep(self._delay)
                if (snapshot := self._take()) is not None:
                    now = self._clock.now()
                    self._written(now, await asyncio.to_thread(self._write, snapshot, now))
        finally:
            self.flush()

    def flush(self) -> None:
        """Write now what is unsaved; a full disk is a condition, not an error."""
        if (snapshot := self._take()) is not None:
            now = self._clock.now()
            self._written(now, self._write(snapshot, now))

    def _take(self) -> Snapshot | None:
        pending, self._pending = self._pending, None
        self._news.clear()
        return pending() if pending is not None else None

    def _write(self, snapshot: Snapshot, now: datetime) -> str:
        """In any thread; returns what went wrong, or ''."""
        try:
            files.write_atomic(self._path, encode(snapshot, now), mode=0o600)
        except MeshagentError as error:
            return error.message
        return ""

    def _written(self, now: datetime, fault: str) -> None:
        if fault:
            self._conditions.set(UNSAVED, f"after a restart this host would start with older configuration: {fault}")
            return
        self._conditions.clear(UNSAVED)
        self._conditions.clear(DAMAGED)  # what was set aside is replaced; the log keeps the news
        self.saved_at.set(now)

    def _set_aside(self, why: str) -> None:
        aside = self._path.with_name(self._path.name + ".set-aside")
        with contextlib.suppress(OSError):
            self._path.replace(aside)
        log.warning("saved configuration set aside", reason=why, path=str(aside))
        self._conditions.set(DAMAGED, f"the saved configuration was damaged ({why}) and set aside as {aside}")


def encode(snapshot: Snapshot, now: datetime) -> bytes:
    """The file's content."""
    body = b"".join(_frames(snapshot))
    header = {"format": FORMAT, "sha256": hashlib.sha256(body).hexdigest(), "saved": now.isoformat()}
    return json.dumps(header).encode() + b"\n" + body


def decode(data: bytes) -> tuple[Snapshot, datetime]:
    """The inverse; raises ``ValueError`` that says what is wrong."""
    head, found, body = data[:MAX_HEADER].partition(b"\n")
    if not found:
        raise ValueError("no header")
    body = data[len(head) + 1 :]
    try:
        header = json.loads(head)
        saved_at = datetime.fromisoformat(header["saved"]).astimezone(UTC)
        checksum, version = header["sha256"], header["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("a bad header") from error
    if version != FORMAT:
        raise ValueError(f"format {version!r} is not known here")
    if checksum != hashlib.sha256(body).hexdigest():
        raise ValueError("a wrong checksum")
    return dict(_snapshot(body)), saved_at


def _frames(snapshot: Snapshot) -> Iterator[bytes]:
    for type_url, entries in snapshot.items():
        message = DeltaDiscoveryResponse(type_url=type_url)
        for name, entry in entries.items():
            resource = message.resources.add(name=name, version=entry.version)
            resource.resource.type_url = type_url
            resource.resource.value = entry.body
        data = message.SerializeToString()
        yield _LENGTH.pack(len(data)) + data


def _snapshot(body: bytes) -> Iterator[tuple[str, dict[str, Entry]]]:
    at = 0
    while at < len(body):
        if len(body) - at < _LENGTH.size:
            raise ValueError("a cut-off message")
        (size,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        try:
            message = DeltaDiscoveryResponse.FromString(body[at : at + size])
        except DecodeError as error:
            raise ValueError("an unreadable message") from error
        at += size
        yield message.type_url, {r.name: Entry(r.version, r.resource.value) for r in message.resources}
