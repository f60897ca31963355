"""Each open connection that meets a rule is told what happens to it; the others aren't mentioned."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from meshagent.agent.capture.values import Intent
from meshagent.agent.judge.connections import concerned
from meshagent.agent.judge.values import OpenConnection, Session
from meshagent.config.settings import CaptureConfig, Exclude, PortRange
from meshagent.model.posture import Posture
from tests.agent.capture.builders import decided, declared, host_facts, pair

SESSION = Session(22, ip_address("192.0.2.7"), 50022, "sshd")
MESH = ("240.240.0.7:6379", "10.1.2.3:3306")


def open_connection(local: str, remote: str) -> OpenConnection:
    ends = pair(local), pair(remote)
    return OpenConnection(ends[0].ip, ends[0].port, ends[1].ip, ends[1].port)


def effects(intent: Intent, *found: tuple[str, str]) -> list[str]:
    answer = concerned(intent, host_facts(), [open_connection(*each) for each in found], SESSION)
    return [effect for _, effect in answer]


def permissive(posture: Posture = Posture.PERMISSIVE, config: CaptureConfig | None = None) -> Intent:
    wishes = {"services": (declared("web", 80), declared("login", 2222))}
    return decided(posture, *MESH, config=config or CaptureConfig(), **wishes)


@pytest.mark.parametrize(
    ("local", "remote", "words"),
    [
        ("10.0.0.5:22", "192.0.2.7:50022", "your session"),
        ("10.0.0.5:22", "192.0.2.7:50023", "its port is never captured"),
        ("10.0.0.5:2222", "192.0.2.8:4000", "its port is never captured"),
        ("10.0.0.5:80", "192.0.2.8:4000", "counted"),
        ("10.0.0.5:41000", "10.1.2.3:3306", "a new one goes through the mesh"),
        ("10.0.0.5:41000", "240.240.0.7:6379", "goes through the mesh already"),
        ("[fd00::5]:80", "[fd00::8]:4000", "counted"),
    ],
)
def test_a_connection_concerned_stays_and_a_new_one_is_told(local: str, remote: str, words: str) -> None:
    (effect,) = effects(permissive(), (local, remote))
    assert words in effect and "stays" in effect


@pytest.mark.parametrize(
    ("local", "remote"),
    [
        ("10.0.0.5:41000", "10.1.2.3:3307"),
        ("10.0.0.5:41000", "10.9.9.9:3306"),
        ("127.0.0.1:80", "127.0.0.1:4000"),
        ("10.0.0.5:80", "10.0.0.5:4000"),
        ("10.0.0.5:81", "192.0.2.8:4000"),
    ],
)
def test_a_connection_that_meets_no_rule_is_not_mentioned(local: str, remote: str) -> None:
    assert effects(permissive(), (local, remote)) == []


def test_strict_says_that_a_new_one_would_be_refused() -> None:
    assert "would be refused" in effects(permissive(Posture.STRICT), ("10.0.0.5:80", "192.0.2.8:4000"))[0]


def test_what_is_excluded_is_not_concerned() -> None:
    config = CaptureConfig(exclude=Exclude(ports=(PortRange(3306, 3306),)))
    assert effects(permissive(config=config), ("10.0.0.5:41000", "10.1.2.3:3306")) == []


def test_where_everything_is_captured_each_is_told_by_who_called_whom() -> None:
    plain = decided(Posture.OUTBOUND, *MESH)
    everything = replace(
        plain,
        all_families=(4,),
        inbound_families=(4,),
        inbound_direct_ports=(PortRange(22, 22),),
        direct_ports=(PortRange(53, 53),),
    )
    cases = {
        ("10.0.0.5:41000", "198.51.100.7:443"): "a new one goes through the proxy",
        ("10.0.0.5:8080", "198.51.100.7:5000"): "a new one comes in through the proxy",
        ("10.0.0.5:41000", "198.51.100.7:53"): "",
        ("[fd00::5]:41000", "[fd00::99]:443"): "",
        ("10.0.0.5:41000", "127.0.0.1:443"): "",
    }
    for (local, remote), words in cases.items():
        found = list(concerned(everything, host_facts(), [open_connection(local, remote)], None, {8080, 22}))
        assert [words in effect for _, effect in found] == [True] * bool(words)


def test_observe_concerns_nobody_but_the_session_is_still_named_first() -> None:
    intent = decided(Posture.OBSERVE, services=(declared("web", 80),))
    found = effects(intent, ("10.0.0.5:80", "192.0.2.8:4000"), ("10.0.0.5:22", "192.0.2.7:50022"))
    assert len(found) == 1 and "your session" in found[0]


def test_of_thousands_none_is_left_out_and_the_session_comes_first() -> None:
    many = [("10.0.0.5:80", f"192.0.2.8:{port}") for port in range(2000, 5000)]
    found = effects(permissive(), *many, ("10.0.0.5:22", "192.0.2.7:50022"))
    assert len(found) == 3001 and "your session" in found[0]
