"""Settings are judged by what was measured, and none is changed."""

import pytest

from meshagent.agent.judge.sysctls import judge_sysctls

COUNT, MOST = "net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max"


@pytest.mark.parametrize(
    ("name", "value", "verdict", "words"),
    [
        ("net.ipv4.conf.*.rp_filter", 0, "ok", "off"),
        ("net.ipv4.conf.*.rp_filter", 1, "ok", "strict"),
        ("net.ipv4.conf.*.rp_filter", 2, "ok", "loose"),
        ("net.ipv4.conf.*.src_valid_mark", 0, "ok", "don't count"),
        ("net.ipv4.conf.*.src_valid_mark", 1, "ok", "wg-quick"),
        ("net.ipv4.conf.*.route_localnet", 0, "ok", "no route"),
        ("net.ipv4.conf.*.route_localnet", 1, "mind", "doesn't need it"),
        ("net.ipv4.ip_forward", 1, "ok", "forwarded traffic is not captured"),
        ("net.ipv6.conf.all.forwarding", 0, "ok", "forwards nothing"),
    ],
)
def test_each_setting_has_a_verdict_and_a_sentence(name: str, value: int, verdict: str, words: str) -> None:
    (judged,) = judge_sysctls({name: value}, 0)
    assert (judged.name, judged.value, judged.verdict) == (name, value, verdict)
    assert words in judged.text


@pytest.mark.parametrize(
    ("count", "most", "connections", "verdict", "words"),
    [
        (16, 262144, 10, "ok", "16 of 262144"),
        (9000, 10000, 10, "mind", "drops new connections"),
        (4000, 10000, 10, "ok", "4000 of 10000"),
        (5000, 10000, 10, "mind", "before capture goes on"),
        (0, 10000, 6000, "mind", "6000 connections are open"),
        (0, 10000, 4000, "ok", "takes 2"),
    ],
)
def test_conntrack_is_judged_with_what_capture_adds(
    count: int, most: int, connections: int, verdict: str, words: str
) -> None:
    (judged,) = judge_sysctls({COUNT: count, MOST: most}, connections)
    assert judged.verdict == verdict and words in judged.text


def test_without_conntrack_there_is_no_word_of_it() -> None:
    assert judge_sysctls({"net.ipv4.ip_forward": 0}, 10**6)[0].name == "net.ipv4.ip_forward"
