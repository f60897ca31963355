import dataclasses
import os
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.config.load import check_agent_config, read_agent_config
from meshagent.config.settings import (
    AgentConfig,
    Backend,
    CaptureConfig,
    DnsConfig,
    DnsMode,
    Exclude,
    KeyType,
    MetricsConfig,
    OutboundScope,
    PortRange,
    ProxyConfig,
)
from meshagent.config.tree import ConfigError
from meshagent.config.yamltext import parse_yaml
from meshagent.model.address import HostPort
from meshagent.model.posture import Posture

SAMPLES = Path(__file__).resolve().parents[2] / "packaging/conf"


def read(text: str) -> AgentConfig:
    return check_agent_config("agent.yaml", parse_yaml(text.encode(), "agent.yaml"))


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        read(text)
    return [str(problem) for problem in raised.value.problems]


def test_the_full_sample_is_the_defaults() -> None:
    assert read_agent_config(SAMPLES / "agent.full.yaml") == AgentConfig()
    assert read_agent_config(SAMPLES / "agent.minimal.yaml") == AgentConfig()


def test_the_full_sample_shows_every_key() -> None:
    (node,) = parse_yaml((SAMPLES / "agent.full.yaml").read_bytes(), "")
    assert _keys(node.to_json()[1]) == _fields(AgentConfig())


def _keys(value: Any) -> Any:
    return {key: _keys(item[1]) for key, item in value.items()} if isinstance(value, dict) and value else None


def _fields(value: Any) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, HostPort):
        return None
    return {field.name: _fields(getattr(value, field.name)) for field in dataclasses.fields(value)}


def test_no_file_and_an_empty_file_are_the_defaults(tmp_path: Path) -> None:
    assert read_agent_config(tmp_path / "none.yaml") == AgentConfig()
    assert read("") == read("# nothing\n") == read("---\n") == AgentConfig()


def test_every_setting_is_taken() -> None:
    config = read(
        """
hub: [hub.example, "[2001:db8::1]:9999"]
name: web-1.example
posture: strict
locality: eu/dc1
labels: {team: billing, app: web}
advertise: [10.0.0.5, 2001:db8::5]
capture:
  outbound: all
  backend: nft
  exclude:
    {ports: [22, 8000-8100], cidrs: [10.0.0.0/8, "fd00::/8"], uids: [0, 33], units: [backup@a.service], interfaces: br0}
  force_ports: 2222
dns: {mode: off}
proxy: {concurrency: 4, memory: 512M, allow_version: 1.38.0, binary: /opt/envoy}
identity: {key_type: rsa-3072}
metrics: {listen: off}
last_known: {max_age: 12h}
"""
    )
    assert config.hub == (HostPort("hub.example", 15012), HostPort("2001:db8::1", 9999))
    assert (config.name, config.posture, config.locality) == ("web-1.example", Posture.STRICT, "eu/dc1")
    assert config.labels == (("app", "web"), ("team", "billing"))
    assert config.advertise == (ip_address("10.0.0.5"), ip_address("2001:db8::5"))
    assert config.capture == CaptureConfig(
        outbound=OutboundScope.ALL,
        backend=Backend.NFT,
        exclude=Exclude(
            ports=(PortRange(22, 22), PortRange(8000, 8100)),
            cidrs=(ip_network("10.0.0.0/8"), ip_network("fd00::/8")),
            uids=(0, 33),
            units=("backup@a.service",),
            interfaces=("br0",),
        ),
        force_ports=(PortRange(2222, 2222),),
    )
    assert config.dns == DnsConfig(DnsMode.OFF)
    assert config.proxy == ProxyConfig("/opt/envoy", "meshagent-proxy", 4, 512 << 20, "1.38.0")
    assert config.identity.key_type is KeyType.RSA_3072
    assert config.metrics == MetricsConfig(None)
    assert config.last_known.max_age == 12 * 3600


@pytest.mark.parametrize("text", ["5s", "0", "12", "1.5h", "-1d", "999999d", "12 h", "true"])
def test_an_age_that_is_none_is_refused_by_name(text: str) -> None:
    (problem,) = problems(f"last_known: {{max_age: {text}}}")
    assert "last_known.max_age" in problem and "10s to 366d" in problem


def test_all_mistakes_are_told_at_once_each_with_line_path_and_remedy() -> None:
    told = problems(
        "posture: strct\nhubs: x\ncapture:\n  outbund: all\n  exclude:\n    ports:\n      - 22\n      - 99999\n"
        "proxy: {memory: 12}\n"
    )
    assert told == [
        "agent.yaml:1: posture: 'strct' is not one of its values (use observe, outbound, permissive, strict)",
        "agent.yaml:2: hubs: is not a known key (did you mean hub?)",
        "agent.yaml:4: capture.outbund: is not a known key (did you mean outbound?)",
        "agent.yaml:8: capture.exclude.ports[1]: 99999 is not a port or range of ports"
        " (write it like 8080 or 8000-8100)",
        "agent.yaml:9: proxy.memory: 12 is not a size (write auto, or a size from 64M like 512M or 2G)",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "name: 'a;b'",
        'name: "a\\nb"',
        "name: \u0430gent",  # a Cyrillic letter
        "name: [a]",
        "capture: {exclude: {ports: ['\u0662\u0662']}}",
        "capture: {exclude: {ports: [0]}}",
        "capture: {exclude: {ports: [8100-8000]}}",
        "capture: {exclude: {ports: [true]}}",
        "capture: {exclude: {ports: [99999999999999999999999999]}}",
        "capture: {exclude: {ports: ['22 accept; drop']}}",
        "capture: {exclude: {cidrs: [10.0.0.1/8]}}",
        "capture: {exclude: {cidrs: ['10.0.0.0/8; flush ruleset']}}",
        "capture: {exclude: {cidrs: ['fe80::1%eth0']}}",
        "capture: {exclude: {uids: [-1]}}",
        "capture: {exclude: {uids: [4294967295]}}",
        "capture: {exclude: {uids: [root]}}",
        "capture: {exclude: {units: ['../../x.service']}}",
        'capture: {units: ["a\\"b.service"]}',
        "capture: {units: [nginx]}",
        "capture: {bridges: ['br0;reboot']}",
        "capture: {bridges: [an-interface-name-too-long]}",
        "capture: yes",
        "capture: [outbound]",
        "proxy: {binary: envoy}",
        "proxy: {binary: '/opt/$(reboot)'}",
        "proxy: {concurrency: 0}",
        "proxy: {concurrency: '2'}",
        "proxy: {user: 'a b'}",
        "metrics: {listen: nohost}\nmetrics2: {}",
        "metrics: {listen: 'a b:1'}",
        "hub: ['a:0']",
        "hub: ['a:99999']",
        "hub: ['-x:1']",
        "advertise: 127.0.0.1",
        "advertise: ['::']",
        "advertise: fe80::1",
        "labels: {a: yes, b: 1}",
        "labels: {'a b': c}",
        "locality: a/b/c/d",
        "log: {level: trace}",
        "- a\n- b",
        "just text",
        "posture: strict\n---\nposture: strict",
        "posture: strict\nposture: observe",
    ],
)
def test_hostile_and_wrong_values_are_refused_by_name(line: str) -> None:
    told = problems(line)
    assert told and all(
        problem.startswith("agent.yaml:") and problem.isascii() and "\n" not in problem for problem in told
    )


@given(st.text(max_size=40))
def test_no_text_in_any_place_is_more_than_refused(text: str) -> None:
    import json

    quoted = json.dumps(text)
    for line in (f"name: {quoted}", f"capture: {{units: [{quoted}]}}", f"{quoted}: 1", f"hub: [{quoted}]", text):
        try:
            config = read(line)
        except ConfigError as error:
            assert str(error).isprintable() or "\n" in str(error)
        else:
            assert ";" not in config.name and "\n" not in config.name


def test_a_directory_a_fifo_and_a_huge_file_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "huge").write_bytes(b"# " + b"x" * (300 << 10))
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "huge"):
        with pytest.raises(ConfigError):
            read_agent_config(path)
