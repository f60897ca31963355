import asyncio
import http.server
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from meshagent.agent.services.check import run_check
from meshagent.model.marks import AGENT_MARK
from meshagent.model.service import Check
from tests.ports import free_port

LOOPBACK = ip_address("127.0.0.1")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.strip("/") or 200))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def check(port: int, how: Check, ip: str = "127.0.0.1", mark: int | None = None) -> str | None:
    return asyncio.run(run_check(how, ip_address(ip), port, mark=mark))


@pytest.mark.parametrize(
    ("path", "well"), [("/200", True), ("/204", True), ("/302", True), ("/404", False), ("/503", False)]
)
def test_http_is_well_from_200_to_399(web: int, path: str, well: bool) -> None:
    failure = check(web, Check("http", path))
    assert failure == (None if well else f"GET {path}: status {path[1:]}")


def test_tcp_is_well_when_something_listens(web: int) -> None:
    assert check(web, Check()) is None


def test_ipv6_is_checked_too() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert check(server.getsockname()[1], Check(), "::1") is None


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_a_closed_port_says_so(kind: str) -> None:
    port = free_port()
    assert check(port, Check(kind)) == f"nothing listens on 127.0.0.1:{port}"


def test_a_process_that_accepts_and_says_nothing_fails_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        begun = time.monotonic()
        failure = check(server.getsockname()[1], Check("http", timeout=0.2))
        assert failure and "within 0.2 s" in failure and time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "said", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 \r\n", b"HTTP/1.1 20000 OK\r\n", b"x" * 100_000]
)
def test_what_is_not_http_is_not_well(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)

        threading.Thread(target=talk, daemon=True).start()
        failure = check(server.getsockname()[1], Check("http"))
        assert failure is not None


@pytest.mark.root
def test_its_packets_carry_the_agents_mark_and_so_pass_capture(web: int) -> None:
    rules = f"""table inet check_test {{
      chain out {{
        type filter hook output priority 0;
        tcp dport {web} tcp flags & (syn | ack) == syn meta mark {AGENT_MARK} counter accept
        tcp dport {web} tcp flags & (syn | ack) == syn counter reject
      }}
    }}"""
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)  # in the namespace of the test process
    try:
        assert check(web, Check("http"), mark=AGENT_MARK) is None
        assert check(web, Check("http"), mark=None) is not None
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "check_test"], check=True)
