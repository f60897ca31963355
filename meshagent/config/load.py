"""``agent.yaml`` -> ``AgentConfig``: which keys there are and what each may hold."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meshagent.config import checks
from meshagent.config.checks import At, choice, fields, host_port, integer, items, labels, locality, matching, whole
from meshagent.config.read import FileTrees, read_tree
from meshagent.config.settings import (
    AgentConfig,
    Backend,
    CaptureConfig,
    DnsConfig,
    DnsMode,
    Exclude,
    FailurePolicy,
    IdentityConfig,
    InboundScope,
    Ipv6Mode,
    KeyType,
    LastKnownConfig,
    LogConfig,
    LogFormat,
    LogLevel,
    MetricsConfig,
    OutboundScope,
    ProxyConfig,
    RedirectMode,
)
from meshagent.config.tree import ConfigError, Node, Problem
from meshagent.model.address import HostPort
from meshagent.model.ports import CONTROL_PLANE, METRICS
from meshagent.model.posture import Posture

_unit = matching(
    r"[A-Za-z0-9:_.@\\-]{1,240}\.(service|slice|scope|socket)",
    "a systemd unit",
    "write its full name, like orders.service",
)
_interface = matching(
    r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}", "a network interface", "use the name that `ip link` shows, at most 15 letters"
)
_user = matching(r"[a-z_][a-z0-9_-]{0,30}", "a user name", "use a-z, 0-9, '-' and '_'")
_binary = matching(r"/[A-Za-z0-9._+/-]{1,240}", "an absolute path", "write the whole path, like /opt/envoy", empty=True)
_version = matching(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}", "a version", "write it like '1.39.3'", empty=True)
_name = matching(
    r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?){0,8}",
    "a host name",
    "use a-z, 0-9, '-' and dots",
    empty=True,
)
_uid = integer(0, 2**32 - 2)  # (uid_t) -1 means "unchanged" to the kernel

_DURATIONS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def read_agent_config(path: Path) -> AgentConfig:
    """``agent.yaml`` parsed in this process (command line); a missing file is the defaults. Raises ``ConfigError``."""
    trees = read_tree(path)
    return AgentConfig() if trees is None else check_agent_config(str(path), trees)


def check_agent_config(file: str, trees: FileTrees) -> AgentConfig:
    """The settings of a parsed file. Raises ``ConfigError`` with every problem."""
    nodes = _documents(trees)
    if len(nodes) > 1:
        raise ConfigError((Problem(file, nodes[1].line, "", "has a second document", "keep one"),))
    return whole(file, nodes[0], _agent) if nodes else AgentConfig()


def _documents(trees: FileTrees) -> Sequence[Node]:
    problems = tuple(item for item in trees if isinstance(item, Problem))
    if problems:
        raise ConfigError(problems)
    return [item for item in trees if isinstance(item, Node)]


def _agent(at: At) -> AgentConfig:
    return AgentConfig(
        **fields(
            at,
            {
                "hub": items(host_port(CONTROL_PLANE), most=16),
                "name": _name,
                "posture": choice(Posture),
                "locality": locality,
                "labels": labels,
                "advertise": items(checks.address, most=8),
                "capture": _capture,
                "dns": lambda at: DnsConfig(**fields(at, {"mode": choice(DnsMode)})),
                "proxy": _proxy,
                "identity": lambda at: IdentityConfig(**fields(at, {"key_type": choice(KeyType)})),
                "log": lambda at: LogConfig(**fields(at, {"level": choice(LogLevel), "format": choice(LogFormat)})),
                "metrics": lambda at: MetricsConfig(**fields(at, {"listen": _listen})),
                "last_known": lambda at: LastKnownConfig(**fields(at, {"max_age": _max_age})),
            },
        )
    )


def _capture(at: At) -> CaptureConfig:
    known: dict[str, checks.Check[Any]] = {
        "outbound": choice(OutboundScope),
        "inbound": choice(InboundScope),
        "backend": choice(Backend),
        "mode": choice(RedirectMode),
        "on_proxy_failure": choice(FailurePolicy),
        "ipv6": choice(Ipv6Mode),
        "exclude": _exclude,
        "units": items(_unit),
        "bridges": items(_interface),
        "force_ports": items(checks.port_range),
    }
    return CaptureConfig(**fields(at, known))


def _exclude(at: At) -> Exclude:
    known: dict[str, checks.Check[Any]] = {
        "ports": items(checks.port_range),
        "cidrs": items(checks.network),
        "uids": items(_uid),
        "gids": items(_uid),
        "units": items(_unit),
        "interfaces": items(_interface),
    }
    return Exclude(**fields(at, known))


def _proxy(at: At) -> ProxyConfig:
    known: dict[str, checks.Check[Any]] = {
        "binary": _binary,
        "user": _user,
        "concurrency": integer(1, 256),
        "memory": _memory,
        "allow_version": _version,
    }
    return ProxyConfig(**fields(at, known))


def _memory(at: At) -> int:
    value = at.node.value
    if value == "auto":
        return 0
    match = re.fullmatch(r"([0-9]{1,6})([KMG])", str(value), re.ASCII)
    size = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 64 << 20 <= size <= 1 << 40:  # an idle Envoy alone holds 64 MB
        raise at.wrong(f"{checks.shown(value)} is not a size", "write auto, or a size from 64M like 512M or 2G")
    return size


def _max_age(at: At) -> int:
    """Seconds; 0 for ``none``."""
    value = at.node.value
    if value == "none":
        return 0
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", str(value), re.ASCII)
    seconds = int(match[1]) * _DURATIONS[match[2]] if match else 0
    if not 10 <= seconds <= 366 * 86_400:  # a hub that is restarted is away for some seconds
        raise at.wrong(f"{checks.shown(value)} is not an age", "write none, or an age from 10s to 366d like 12h or 7d")
    return seconds


def _listen(at: At) -> HostPort | None:
    return None if at.node.value in (False, "off") else host_port(METRICS)(at)
