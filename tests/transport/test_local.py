"""The command line and the daemon over a real Unix socket: answers, errors, streams, and what garbage can do."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from meshagent.model.errors import ExitCode, MeshagentError, NotEnrolledError
from meshagent.transport import local_server
from meshagent.transport.local import MAX_REQUEST, call, stream
from meshagent.transport.local_server import LocalServer, caller
from meshagent.transport.unix import Access, listen


async def echo(params: dict[str, Any]) -> dict[str, Any]:
    return params


async def whoami(params: dict[str, Any]) -> int:
    return caller.get().uid


async def fail(params: dict[str, Any]) -> None:
    raise NotEnrolledError("/r")


async def crash(params: dict[str, Any]) -> None:
    raise RuntimeError("secret detail")


async def hang(params: dict[str, Any]) -> None:
    await asyncio.Event().wait()


async def count(params: dict[str, Any]) -> AsyncIterator[int]:
    for i in range(params["to"]):
        yield i
    if params.get("fail"):
        raise MeshagentError("over", "enough")


class Watching:
    """An endless stream that notes when it is over."""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    async def __call__(self, params: dict[str, Any]) -> AsyncIterator[str]:
        try:
            yield "first"
            await asyncio.Event().wait()
        finally:
            self.over.set()


METHODS = {"echo": echo, "whoami": whoami, "fail": fail, "crash": crash, "hang": hang, "count": count}


@contextlib.asynccontextmanager
async def serving(path: Path, methods: Any = METHODS, access: Access | None = None) -> AsyncIterator[LocalServer]:
    server = LocalServer(path, methods, access)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def files(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def with_server(tmp_path: Path, client: Callable[[Path], Any]) -> Any:
    """Run a blocking client in a thread against a server."""

    async def scenario() -> Any:
        async with serving(tmp_path / "s.sock"):
            return await asyncio.to_thread(client, tmp_path / "s.sock")

    return asyncio.run(scenario())


def test_a_call_brings_the_result(tmp_path: Path) -> None:
    assert with_server(tmp_path, lambda path: call(path, "echo", {"a": [1, "ü"]})) == {"a": [1, "ü"]}


def test_an_error_arrives_as_it_was_raised(tmp_path: Path) -> None:
    with pytest.raises(MeshagentError) as caught:
        with_server(tmp_path, lambda path: call(path, "fail"))
    error = caught.value
    assert (error.code, error.exit_code) == ("not-enrolled", ExitCode.NOT_ENROLLED)
    assert error.hint.startswith("join a mesh")


def test_a_defect_says_nothing_of_its_inside_to_the_client(tmp_path: Path) -> None:
    with pytest.raises(MeshagentError) as caught:
        with_server(tmp_path, lambda path: call(path, "crash"))
    assert caught.value.code == "internal"
    assert "secret" not in caught.value.message


def test_an_unknown_method_is_named(tmp_path: Path) -> None:
    with pytest.raises(MeshagentError, match="no method 'nonsense'"):
        with_server(tmp_path, lambda path: call(path, "nonsense"))


def test_a_method_knows_its_caller(tmp_path: Path) -> None:
    assert with_server(tmp_path, lambda path: call(path, "whoami")) == os.getuid()


def test_a_stream_brings_results_as_they_come_and_ends(tmp_path: Path) -> None:
    assert with_server(tmp_path, lambda path: list(stream(path, "count", {"to": 5}))) == [0, 1, 2, 3, 4]


def test_a_stream_that_fails_brings_what_it_had_and_the_error(tmp_path: Path) -> None:
    def client(path: Path) -> list[int]:
        got = []
        with pytest.raises(MeshagentError, match="enough"):
            for item in stream(path, "count", {"to": 2, "fail": True}):
                got.append(item)
        return got

    assert with_server(tmp_path, client) == [0, 1]


def test_a_stream_ends_when_the_client_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        watching = Watching()
        async with serving(tmp_path / "s.sock", {"watch": watching}):

            def client() -> None:
                for _ in stream(tmp_path / "s.sock", "watch"):
                    break

            await asyncio.to_thread(client)
            await asyncio.wait_for(watching.over.wait(), 30)

    asyncio.run(scenario())


def test_a_method_that_hangs_ends_in_the_clients_timeout(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(MeshagentError) as caught:
        with_server(tmp_path, lambda path: call(path, "hang", timeout=0.2))
    assert (caught.value.code, caught.value.exit_code) == ("no-answer", ExitCode.UNHEALTHY)
    assert time.monotonic() - begin < 5


def test_nobody_there_is_an_error_of_connecting(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        call(tmp_path / "none.sock", "echo")
    dead = listen(tmp_path / "dead.sock", Access())
    dead.close()
    with pytest.raises(ConnectionRefusedError):
        call(tmp_path / "dead.sock", "echo")


@pytest.mark.parametrize(
    "garbage",
    [b"\n", b"garbage\n", b"[]\n", b"{}\n", b'{"id": [], "method": 1}\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n",
     b'{"method": "echo", "params": 7}\n', b"x" * (MAX_REQUEST + 10), b""],
)  # fmt: skip
def test_garbage_closes_or_answers_its_own_connection_and_no_other(tmp_path: Path, garbage: bytes) -> None:
    def client(path: Path) -> Any:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(path))
            with contextlib.suppress(OSError):
                raw.sendall(garbage)
                raw.shutdown(socket.SHUT_WR)
            raw.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                answer = raw.recv(65_536)
                assert not answer or "error" in json.loads(answer)
        return call(path, "echo", {"still": "here"})

    assert with_server(tmp_path, client) == {"still": "here"}


def test_the_socket_is_private_from_the_start_and_gone_after(tmp_path: Path) -> None:
    async def scenario() -> list[tuple[str, int]]:
        async with serving(tmp_path / "s.sock"):
            return [(path.name, path.stat().st_mode & 0o777) for path in files(tmp_path)]

    assert asyncio.run(scenario()) == [("s.sock", 0o600)]
    assert files(tmp_path) == []


def test_a_group_socket_has_mode_and_group(tmp_path: Path) -> None:
    async def scenario() -> tuple[int, int]:
        async with serving(tmp_path / "s.sock", access=Access(0o660, gid=os.getgid())):
            status = (tmp_path / "s.sock").stat()
            return status.st_mode & 0o777, status.st_gid

    assert asyncio.run(scenario()) == (0o660, os.getgid())


def test_a_stale_socket_is_taken_over_and_a_live_one_is_not(tmp_path: Path) -> None:
    listen(tmp_path / "s.sock", Access()).close()

    async def scenario() -> None:
        async with serving(tmp_path / "s.sock"):
            with pytest.raises(MeshagentError) as caught:
                await LocalServer(tmp_path / "s.sock", METHODS).start()
            assert caught.value.code == "already-running"
            assert await asyncio.to_thread(call, tmp_path / "s.sock", "echo") == {}

    asyncio.run(scenario())


def test_another_user_is_refused_unless_a_member_of_the_group() -> None:
    stranger = local_server.Caller(pid=1, uid=64_999, gid=64_999)
    assert not local_server._allowed(stranger, None)
    assert not local_server._allowed(stranger, 64_998)
    assert local_server._allowed(stranger, 64_999)
    assert local_server._allowed(local_server.Caller(1, 0, 0), None)


def test_the_client_imports_neither_asyncio_nor_grpc() -> None:
    heavy = "{'asyncio', 'grpc', 'ssl', 'structlog'}"
    code = f"import sys, meshagent.transport.local; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
