import socket
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from meshagent.agent.services.target import Target, Where, decide_target
from meshagent.machine.sockets import listeners
from meshagent.model.address import IPAddress


@dataclass(frozen=True)
class Socket:
    ip: IPAddress
    port: int
    dual: bool


def on(text: str, port: int = 80, dual: bool = False) -> Socket:
    return Socket(ip_address(text), port, dual)


V4, V6 = ip_address("10.0.0.5"), ip_address("fd00::5")
OTHER = ip_address("10.9.9.9")
CASES = [
    # listening, own addresses -> where, mesh, check
    ([on("0.0.0.0")], [V4, V6], Where.WILDCARD, "10.0.0.5", "127.0.0.1"),
    ([on("0.0.0.0")], [V6, V4], Where.WILDCARD, "10.0.0.5", "127.0.0.1"),
    ([on("0.0.0.0")], [V6], Where.WILDCARD, "127.0.0.1", "127.0.0.1"),
    ([on("::", dual=True)], [V4, V6], Where.WILDCARD, "10.0.0.5", "127.0.0.1"),
    ([on("::", dual=True)], [V6, V4], Where.WILDCARD, "fd00::5", "127.0.0.1"),
    ([on("::")], [V4, V6], Where.WILDCARD, "fd00::5", "::1"),
    ([on("::")], [V4], Where.WILDCARD, "::1", "::1"),
    ([on("0.0.0.0"), on("::")], [V6, V4], Where.WILDCARD, "fd00::5", "127.0.0.1"),
    ([on("127.0.0.1")], [V4], Where.LOOPBACK, "127.0.0.1", "127.0.0.1"),
    ([on("::1")], [V4], Where.LOOPBACK, "::1", "::1"),
    ([on("::1"), on("127.0.0.1")], [V4], Where.LOOPBACK, "127.0.0.1", "127.0.0.1"),
    ([on("::1"), on("127.0.0.1")], [V6], Where.LOOPBACK, "::1", "::1"),
    ([on("127.0.0.1")], [V6], Where.LOOPBACK, "127.0.0.1", "127.0.0.1"),
    ([on("127.0.1.1")], [V4], Where.LOOPBACK, "127.0.1.1", "127.0.1.1"),
    ([on("10.9.9.9")], [V4], Where.SPECIFIC, "10.9.9.9", "10.9.9.9"),
    ([on("10.9.9.9"), on("10.0.0.5")], [V4], Where.SPECIFIC, "10.0.0.5", "10.0.0.5"),
    ([on("127.0.0.1"), on("10.0.0.5")], [V4], Where.SPECIFIC, "10.0.0.5", "10.0.0.5"),
    ([on("::ffff:10.0.0.5")], [V4], Where.SPECIFIC, "10.0.0.5", "10.0.0.5"),
    ([on("::ffff:127.0.0.1")], [V4], Where.LOOPBACK, "127.0.0.1", "127.0.0.1"),
    ([on("0.0.0.0", 81)], [V4], Where.NOWHERE, "10.0.0.5", "127.0.0.1"),
    ([], [], Where.NOWHERE, "127.0.0.1", "127.0.0.1"),
]


@pytest.mark.parametrize(("listening", "own", "where", "mesh", "check"), CASES)
def test_a_process_is_reached_where_it_listens(
    listening: list[Socket], own: list[IPAddress], where: Where, mesh: str, check: str
) -> None:
    assert decide_target(80, listening, own) == Target(where, ip_address(mesh), ip_address(check))


def test_real_sockets_are_judged_as_the_kernel_tells_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as loopback, socket.create_server(("0.0.0.0", 0)) as wildcard:
        found = listeners()
        assert decide_target(loopback.getsockname()[1], found, [V4]).where is Where.LOOPBACK
        assert decide_target(wildcard.getsockname()[1], found, [V4]).mesh == V4
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as dual:
        assert decide_target(dual.getsockname()[1], listeners(), [V4]).mesh == V4
    with socket.create_server(("::", 0), family=socket.AF_INET6) as only6:
        assert decide_target(only6.getsockname()[1], listeners(), [V4, V6]).mesh == V6
