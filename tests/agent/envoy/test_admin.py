"""The admin client against servers that behave and that don't."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from meshagent.agent.envoy.admin import Admin, AdminError

Ask = Callable[[Admin], Awaitable[object]]


def against(tmp_path: Path, answer: bytes, ask: Ask, *, hang: bool = False) -> tuple[object, bytes]:
    """What ``ask`` returns against a server that sends ``answer``, and what it was asked."""
    asked = bytearray()

    async def story() -> object:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.extend(await reader.read(4096))
            writer.write(answer)
            if not hang:
                writer.close()

        server = await asyncio.start_unix_server(serve, tmp_path / "a.sock")
        try:
            return await ask(Admin(tmp_path / "a.sock", timeout=0.2))
        finally:
            server.close()

    return asyncio.run(story()), bytes(asked)


def test_the_state_is_read_although_not_ready_answers_503(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 17\r\n\r\nPRE_INITIALIZING\n"
    found, asked = against(tmp_path, answer, lambda admin: admin.state())
    assert found == "PRE_INITIALIZING"
    assert asked.startswith(b"GET /ready HTTP/1.1\r\n")


def test_chunked_numbers_are_read_and_the_pattern_is_quoted(tmp_path: Path) -> None:
    one, two = b'{"stats":[{"name":"a","value":1},', b'{"name":"h","value":{}},{}]}'
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (one, two)) + b"0\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    stats, asked = against(tmp_path, answer, lambda admin: admin.stats(r"^a\.(b|c) x&y$"))
    assert stats == {"a": 1}
    assert b"filter=%5Ea%5C.%28b%7Cc%29%20x%26y%24 HTTP" in asked


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        b"x" * 200_000,
    ],
)
def test_whatever_else_comes_is_one_kind_of_error(tmp_path: Path, answer: bytes) -> None:
    with pytest.raises(AdminError) as caught:
        against(tmp_path, answer, lambda admin: admin.server_info())
    assert caught.value.code == "proxy-admin"


def test_a_hung_proxy_is_given_up_in_time_but_its_pid_is_still_told(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match="did not answer"):
        against(tmp_path, b"HTTP/1.1 200 OK\r\n", lambda admin: admin.state(), hang=True)
    (tmp_path / "a.sock").unlink(missing_ok=True)
    found, _ = against(tmp_path, b"", lambda admin: admin.owner(), hang=True)
    assert found == os.getpid()


def test_no_socket_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match="can't be reached"):
        asyncio.run(Admin(tmp_path / "nobody.sock").state())
