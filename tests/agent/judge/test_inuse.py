"""Who loses something when this host leaves is named; who has a way of its own isn't."""

from ipaddress import ip_address

from meshagent.agent.judge.inuse import candidates, dead_ones, in_use_risk, users
from meshagent.agent.judge.values import OpenConnection
from tests.agent.capture.builders import pair

VIRTUAL, LITERAL, PLAIN = "240.240.0.7:6379", "10.1.2.3:3306", "10.9.9.9:80"
NAMES = {ip_address("240.240.0.7"): "cache.default.mesh.internal"}


def going_to(*remotes: str, program: str = "app", pid: int = 7) -> list[OpenConnection]:
    ends = [pair(remote) for remote in remotes]
    return [OpenConnection(ip_address("10.0.0.5"), 40000, end.ip, end.port, program, pid) for end in ends]


def test_only_claimed_literals_with_open_connections_are_asked() -> None:
    assert candidates(going_to(VIRTUAL, LITERAL, PLAIN), {pair(LITERAL), pair("10.1.2.4:1")}) == {pair(LITERAL)}


def test_a_mesh_name_in_use_is_told_by_its_name_and_program() -> None:
    assert users(going_to(VIRTUAL, VIRTUAL, PLAIN), (), NAMES) == (
        "app (pid 7) to 240.240.0.7 port 6379, cache.default.mesh.internal",
    )


def test_a_literal_counts_only_where_nothing_answers_without_the_mesh() -> None:
    assert users(going_to(LITERAL), (), NAMES) == ()
    dead = dead_ones([pair(LITERAL)], lambda address: False)
    assert users(going_to(LITERAL), dead, NAMES) == ("app (pid 7) to 10.1.2.3 port 3306, whose machine is gone",)
    assert dead_ones([pair(LITERAL)], lambda address: True) == frozenset()


def test_a_program_that_is_not_known_is_still_told() -> None:
    assert users(going_to(VIRTUAL, program="", pid=0), (), {}) == ("a program to 240.240.0.7 port 6379",)


def test_the_risk_has_a_name_and_names_a_few() -> None:
    assert list(in_use_risk(())) == []
    (risk,) = in_use_risk([f"line {number}" for number in range(9)])
    assert risk.name == "mesh-in-use" and "line 4; and 4 more" in risk.text and "line 5" not in risk.text
