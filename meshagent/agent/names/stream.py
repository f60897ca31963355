"""DNS over TCP (RFC 7766): length-prefixed messages; mesh names answered here, the rest passed to a real nameserver.

A client's connection gets one upstream connection, opened at its first foreign name and kept: pipelined queries,
answers out of order and answers of many messages (zone transfers) pass as they are. Ids are new upstream.
"""

import asyncio
import os
import socket
from collections.abc import Callable

from meshagent.agent.names import packet
from meshagent.agent.names.answer import Answerer, Verdict
from meshagent.agent.names.forward import ServerHealth, marked_socket, socket_address
from meshagent.agent.names.resolver import Nameserver, Upstreams

IDLE_SECONDS = 20.0
ANSWER_SECONDS = 4.5
CONNECT_SECONDS = 1.5
MAX_CONNECTIONS = 128
#: Queries of one client that wait upstream; a client that sends more is read no further until some are answered.
MAX_PENDING = 64


async def read_message(reader: asyncio.StreamReader) -> bytes | None:
    """One message without its length; None at the end of the stream."""
    try:
        length = int.from_bytes(await reader.readexactly(2), "big")
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, OSError):
        return None


def write_message(writer: asyncio.StreamWriter, message: bytes) -> None:
    """One message with its length in front."""
    writer.write(len(message).to_bytes(2, "big") + message)


class TcpService:
    """Serves TCP clients; ``connect`` an instance's ``serve`` to ``asyncio.start_server``.

    ``note`` hears each query that was answered from here.
    """

    def __init__(
        self,
        answerer: Callable[[], Answerer],
        upstreams: Upstreams,
        health: ServerHealth,
        *,
        mark: int | None,
        port: int,
        note: Callable[[bytes], None] = lambda _query: None,
    ) -> None:
        self.answerer = answerer
        self.note = note
        self.upstreams = upstreams
        self.health = health
        self.mark = mark
        self.port = port
        self._clients: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client until it leaves or idles."""
        task = asyncio.current_task()
        assert task
        if len(self._clients) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._clients.add(task)
        session = _Session(self, reader, writer)
        try:
            await session.run()
        except (TimeoutError, OSError, asyncio.CancelledError):
            return  # an idle or vanished client, or our own stop: nothing is owed
        finally:
            self._clients.discard(task)
            session.close()

    async def close(self) -> None:
        """End every client's connection."""
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to the first nameserver that takes one."""
        plan = self.upstreams()
        for server in self.health.order(plan.upstreams, plan.rotate):
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    return await self._connect(server)
            except OSError:  # TimeoutError is one
                self.health.failed(server)
        self.health.all_failed(plan.upstreams)
        return None

    async def _connect(self, server: Nameserver) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = marked_socket(server, socket.SOCK_STREAM, self.mark)
        try:
            await asyncio.get_running_loop().sock_connect(sock, socket_address(server, self.port))
            streams = await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        self.health.answered(server)
        return streams


class _Session:
    """One client's connection and the upstream connection that goes with it."""

    def __init__(self, service: TcpService, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._service = service
        self._reader = reader
        self._writer = writer
        self._upstream: asyncio.StreamWriter | None = None
        self._relay: asyncio.Task[None] | None = None
        self._pending: dict[int, bytes] = {}
        self._given_up: asyncio.TimerHandle | None = None
        self._room = asyncio.Event()

    async def run(self) -> None:
        while True:
            async with asyncio.timeout(IDLE_SECONDS):
                query = await read_message(self._reader)
            if query is None:
                break
            reply = self._service.answerer().tcp(query)
            if isinstance(reply, bytes):
                self._service.note(query)
                await self._answer(reply)
            elif reply is Verdict.FORWARD:
                await self._pass_on(query)
        while self._pending:  # a client may close its half and still wait (RFC 7766 section 6.2.3)
            await self._wait_for_room()

    async def _answer(self, reply: bytes) -> None:
        write_message(self._writer, reply)
        async with asyncio.timeout(IDLE_SECONDS):
            await self._writer.drain()

    async def _pass_on(self, query: bytes) -> None:
        while len(self._pending) >= MAX_PENDING:
            await self._wait_for_room()
        if self._upstream is None and not await self._open():
            await self._answer(packet.error_reply(query, packet.SERVFAIL))
            return
        assert self._upstream
        ident = self._free_id()
        self._pending[ident] = query
        write_message(self._upstream, ident.to_bytes(2, "big") + query[2:])
        self._watch_silence()

    async def _wait_for_room(self) -> None:
        self._room.clear()
        await self._room.wait()

    def _free_id(self) -> int:
        while (ident := int.from_bytes(os.urandom(2), "big")) in self._pending:
            pass
        return ident

    async def _open(self) -> bool:
        streams = await self._service.connect()
        if streams is None:
            return False
        self._upstream = streams[1]
        self._relay = asyncio.create_task(self._relay_answers(*streams))
        return True

    async def _relay_answers(self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers to the client, until the nameserver closes; what it left unanswered is SERVFAIL."""
        ids: dict[int, bytes] = {}  # of answered queries, for answers of many messages
        try:
            while (reply := await read_message(upstream)) is not None:
                ident = int.from_bytes(reply[:2], "big")
                query = self._pending.get(ident) or ids.get(ident)
                if query is None or len(reply) < 12 or not reply[2] & 0x80:
                    continue
                self._pending.pop(ident, None)
                ids = {ident: query}
                write_message(self._writer, query[:2] + reply[2:])
                self._watch_silence()
                self._room.set()
                await self._writer.drain()
        except OSError:
            return  # the client left; run() sees it too
        finally:
            if self._upstream is writer:  # not a later one, opened after this one fell silent
                self._fail_pending()

    def _watch_silence(self) -> None:
        if self._given_up:
            self._given_up.cancel()
        self._given_up = None
        if self._pending:
            self._given_up = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._fail_pending)

    def _fail_pending(self) -> None:
        """SERVFAIL for what waits; the next foreign name opens a new upstream connection."""
        if self._upstream:
            self._upstream.close()
        self._upstream = None
        if not self._writer.is_closing():
            for query in self._pending.values():
                write_message(self._writer, packet.error_reply(query, packet.SERVFAIL))
        self._pending.clear()
        self._room.set()

    def close(self) -> None:
        if self._given_up:
            self._given_up.cancel()
        if self._relay:
            self._relay.cancel()
        if self._upstream:
            self._upstream.close()
        self._writer.close()
