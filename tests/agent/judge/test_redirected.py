"""All that takes another way is told, in the words of agent.yaml, and what happens to it without a proxy."""

from dataclasses import replace
from ipaddress import ip_address

from meshagent.agent.judge.redirected import redirected
from meshagent.config.settings import RedirectMode
from meshagent.model.posture import Posture
from tests.agent.capture.builders import decided


def test_each_way_is_told_with_its_reason_and_what_a_dead_proxy_means() -> None:
    intent = replace(
        decided(Posture.PERMISSIVE, "240.240.0.7:80", "192.0.2.9:6379"),
        all_families=(4,),
        bridges=("docker0",),
        bridged_families=(4,),
        inbound_families=(4, 6),
        inbound_mode=RedirectMode.REDIRECT,
        nameservers=(ip_address("192.0.2.53"),),
    )
    told = dict(redirected(intent))
    assert "refused while it is down" in told["240.240.0.7 port 80"]
    assert "direct while it is down" in told["192.0.2.9 port 6379"]
    assert "capture.outbound: all" in told["every other TCP connection that leaves over IPv4"]
    assert "capture.bridges" in told["containers behind docker0"]
    assert "by redirect" in told["what comes in over IPv6 for a process that listens"]
    assert "answered by the agent" in told["DNS questions to 192.0.2.53"]
    assert len(told) == 7
    closed = dict(redirected(replace(intent, fail_open=False)))
    assert "refused while it is down" in closed["192.0.2.9 port 6379"]


def test_observe_turns_nothing() -> None:
    assert list(redirected(decided(Posture.OBSERVE, "240.240.0.7:80"))) == []
