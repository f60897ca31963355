"""What is never captured is told with its reason, before it matters."""

from ipaddress import ip_address

import pytest

from meshagent.agent.judge.spared import never_captured
from meshagent.agent.judge.values import Session
from tests.agent.capture.builders import host_facts

SESSION = Session(22, ip_address("192.0.2.7"), 50022, "sshd")


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("192.0.2.7 port 50022", "your session from 192.0.2.7"),
        ("10.0.0.9", "hub"),
        ("10.0.0.1", "gateway"),
        ("10.0.0.2", "resolver"),
        ("fd00::2", "resolver"),
        ("10.0.0.5", "own address"),
        ("169.254.0.0/16, fe80::/10 and fd00:ec2::254", "metadata"),
        ("UDP, so DHCP and NTP", "only TCP"),
        ("127.0.0.0/8 and ::1", "loopback"),
        ("forwarded traffic", "containers"),
    ],
)
def test_each_is_listed_with_its_reason(what: str, why: str) -> None:
    assert why in dict(never_captured(host_facts(), SESSION))[what]


def test_without_a_session_there_is_no_word_of_one() -> None:
    assert not [why for _, why in never_captured(host_facts(), None) if "session" in why]
