"""The JSON shapes of the command line as data, and a check of one answer against one of them.

A shape is a type, a tuple of allowed types, a list with the shape of its items, or a dict from key to shape. A dict
with the one key ``...`` is a mapping with free keys. Answers must hold exactly the keys of the shape: a key that
appears or goes without the contract knowing it is what these tests are for.
"""

import re
from datetime import datetime
from typing import Any


class Time(str):
    """RFC 3339 in UTC with a ``Z``."""


Shape = Any
NONE = type(None)
TEXT, NUMBER, FLAG = str, (int, float), bool

CONDITION = {"code": TEXT, "severity": TEXT, "title": TEXT, "text": TEXT, "since": Time}
SPARED = [{"port": int, "reason": TEXT}]
STATUS = {
    "enrolled": FLAG,
    "host": TEXT,
    "posture": TEXT,
    "identity": {"spiffe_id": TEXT, "not_after": Time, "renew_at": Time},
    "control_plane": {
        "kind": TEXT,
        "address": TEXT,
        "connected": FLAG,
        "since": (Time, NONE),
        "last_error": TEXT,
        "config_age": NUMBER,
    },
    "capture": {
        "backend": TEXT,
        "active": FLAG,
        "in_sync": FLAG,
        "ports": [int],
        "strict_ports": [int],
        "redirected": [{"port": int, "reason": TEXT, "text": TEXT, "plain": FLAG}],
        "spared": SPARED,
        "refused": [dict],
        "pending_confirm_until": (Time, NONE),
        "bypassed_since": (Time, NONE),
        "rolled_back": (dict, NONE),
        "restored": (dict, NONE),
        "suspended_since": (Time, NONE),
        "around_proxy": int,
    },
    "proxy": {"pid": (int, NONE), "version": TEXT, "ready": FLAG, "epoch": int, "restarts": int, "hangs": int},
    "services": [{"name": TEXT, "host": TEXT, "port": int, "protocol": TEXT, "healthy": FLAG, "reason": TEXT}],
    "plaintext_callers": [
        {"service": TEXT, "address": TEXT, "count": int, "refused": bool, "last_seen": (Time, NONE)},
    ],
    "conditions": [CONDITION],
}
ENROLL = {
    "host": TEXT,
    "spiffe_id": TEXT,
    "not_after": Time,
    "fresh": FLAG,
    "posture": TEXT,
    "captured": [int],
    "spared": SPARED,
    "confirm_until": (Time, NONE),
    "undo": TEXT,
    "emergency": TEXT,
    "started": FLAG,
}
PLAN = {
    "posture": TEXT,
    "rules": TEXT,
    "captured": [{"port": int, "reason": TEXT}],
    "spared": SPARED,
    "direct": [{"what": TEXT, "reason": TEXT}],
    "connections": [{"local": TEXT, "remote": TEXT, "process": TEXT, "pid": int, "effect": TEXT}],
    "redirected": [{"what": TEXT, "reason": TEXT}],
    "firewalls": [{"name": TEXT, "verdict": TEXT, "text": TEXT, "allow": TEXT, "port": int}],
    "address_trust": [
        {
            "program": TEXT,
            "port": int,
            "service": TEXT,
            "keeps": FLAG,
            "file": TEXT,
            "line": int,
            "rule": TEXT,
            "text": TEXT,
        }
    ],
    "sysctls": [{"name": TEXT, "value": int, "verdict": TEXT, "text": TEXT}],
    "risks": [{"risk": TEXT, "text": TEXT, "mend": TEXT}],
    "warnings": [TEXT],
    "changes": [TEXT],
}
CERTS = {
    "spiffe_id": TEXT,
    "serial": TEXT,
    "not_before": Time,
    "not_after": Time,
    "renew_at": Time,
    "chain": [TEXT],
    "bundle": [TEXT],
    "now": Time,
}
PEERS = {
    "services": [
        {
            "host": TEXT,
            "ports": [int],
            "addresses": [TEXT],
            "endpoints": [
                {"address": TEXT, "port": int, "host": TEXT, "healthy": FLAG, "locality": TEXT, "priority": int}
            ],
        }
    ]
}
LEAVE = {
    "was_enrolled": FLAG,
    "seconds": NUMBER,
    "removed": [TEXT],
    "closed": [TEXT],
    "drain": ({"limit": (int, NONE), "seconds": NUMBER, "connections": int}, NONE),
    "warnings": [TEXT],
    "asked": [{"name": TEXT, "times": int, "seconds_ago": int}],
}
POSTURE = {"posture": TEXT, "confirm_until": (Time, NONE), "suspended": FLAG}
CONFIRM = {"confirmed": FLAG}
SERVICE_LIST = {
    "services": [
        {
            "name": TEXT,
            "host": TEXT,
            "port": int,
            "target_port": int,
            "protocol": TEXT,
            "healthy": (bool, NONE),
            "reason": TEXT,
        }
    ],
    "errors": [TEXT],
}
SERVICE_EDIT = {"name": TEXT, "file": TEXT}
CAPTURE_SHOW = {
    "backend": TEXT,
    "active": FLAG,
    "in_sync": FLAG,
    "owned": FLAG,
    "suspended_since": (Time, NONE),
    "captured": [TEXT],
    "spared": SPARED,
    "ruleset": TEXT,
    "counters": [{"chain": TEXT, "reason": TEXT, "packets": int}],
}
CAPTURE_SWITCH = {
    "suspended": FLAG,
    "since": (Time, NONE),
    "changed": FLAG,
    "confirm_until": (Time, NONE),
    "daemon": FLAG,
}
CAPTURE_VERIFY = {"in_sync": FLAG, "differences": [TEXT]}

TOKEN = {"id": TEXT, "token": TEXT, "command": TEXT, "expires_at": Time, "uses": int}
TOKENS = {
    "tokens": [
        {
            "id": TEXT,
            "state": TEXT,
            "namespace": TEXT,
            "service_account": TEXT,
            "uses": int,
            "used": int,
            "hosts": [{"name": TEXT, "at": Time}],
            "created_at": Time,
            "expires_at": Time,
            "host": TEXT,
            "cidrs": [TEXT],
            "services": ([TEXT], NONE),
            "replace": FLAG,
        }
    ]
}
HOSTS = {
    "hosts": [
        {
            "name": TEXT,
            "spiffe_id": TEXT,
            "address": TEXT,
            "addresses": [TEXT],
            "connected": FLAG,
            "stale": FLAG,
            "last_seen": Time,
            "enrolled_at": Time,
            "agent_version": TEXT,
            "envoy_version": TEXT,
            "posture": TEXT,
            "locality": TEXT,
            "services": [TEXT],
            "conditions": [{"code": TEXT, "severity": TEXT, "text": TEXT}],
            "rejections": [{"kind": TEXT, "resource": TEXT, "version": TEXT, "reason": TEXT, "since": Time}],
        }
    ]
}
SERVICES = {
    "services": [
        {
            "host": TEXT,
            "name": TEXT,
            "namespace": TEXT,
            "ports": [int],
            "protocols": {...: TEXT},
            "addresses": [TEXT],
            "claimed": [TEXT],
            "service_accounts": [TEXT],
            "mtls": FLAG,
            "endpoints": [
                {
                    "host": TEXT,
                    "address": TEXT,
                    "port": int,
                    "target_port": int,
                    "healthy": FLAG,
                    "stale": FLAG,
                    "weight": int,
                    "priority": int,
                    "locality": TEXT,
                    "spiffe_id": TEXT,
                }
            ],
        }
    ]
}
AUDIT = {"audit": [{"at": Time, "action": TEXT, "outcome": TEXT, "subject": TEXT, "source": TEXT, "detail": TEXT}]}
CA = {
    "trust_domain": TEXT,
    "ca_hash": TEXT,
    "serial": TEXT,
    "not_before": Time,
    "not_after": Time,
    "certificate": TEXT,
}
HUB_STATUS = {
    "ready": FLAG,
    "version": TEXT,
    "advertise": TEXT,
    "listen": [TEXT],
    "trust_domain": TEXT,
    "zone": TEXT,
    "root_namespace": TEXT,
    "hosts": int,
    "connected": int,
    "services": int,
    "conditions": [CONDITION],
}
BACKUP = {"file": TEXT, "made_at": Time, "version": TEXT, "trust_domain": TEXT, "ca_hash": TEXT, "hosts": int}
OUTCOME = {"kind": TEXT, "namespace": TEXT, "name": TEXT, "action": TEXT}
APPLY = {"applied": [OUTCOME], "warnings": [TEXT]}
VALIDATE = {"valid": FLAG, "resources": int, "warnings": [TEXT]}
RESOURCES = {
    "resources": [{"kind": TEXT, "namespace": TEXT, "name": TEXT, "version": int, "manifest": dict, "yaml": TEXT}]
}
ERROR = {"error": {"code": TEXT, "message": TEXT, "hint": TEXT}}

#: As docs/cli.md names them; ``demo`` is checked by the demo's own tests.
PARENT = {"pid": int, "epoch": int, "version": TEXT, "since": Time, "connections": (int, NONE)}
PROXY_RESTART = {
    "pid": (int, NONE),
    "version": TEXT,
    "epoch": int,
    "ready": FLAG,
    "restarts": int,
    "since": (Time, NONE),
    "adopted": FLAG,
    "crash_loop": FLAG,
    "upgrade": (TEXT, NONE),
    "parent": (PARENT, NONE),
}
PROXY_SHOW = {
    **PROXY_RESTART,
    "uptime": (int, NONE),
    "connections": (int, NONE),
    "memory_allocated": (int, NONE),
    "memory_reserved": (int, NONE),
}
PROXY_CONFIG = {"configs": [dict]}
PROXY_ENDPOINT = {
    "address": TEXT,
    "port": int,
    "healthy": FLAG,
    "priority": int,
    "active": int,
    "total": int,
    "failed": int,
}
PROXY_CLUSTERS = {"clusters": [{"name": TEXT, "endpoints": [PROXY_ENDPOINT]}]}
PROXY_LOG_LEVEL = {"loggers": {...: TEXT}}
DOCUMENTED = {
    "proxy show": PROXY_SHOW,
    "proxy restart": PROXY_RESTART,
    "proxy config": PROXY_CONFIG,
    "proxy clusters": PROXY_CLUSTERS,
    "proxy log-level": PROXY_LOG_LEVEL,
    "status": STATUS,
    "enroll": ENROLL,
    "plan": PLAN,
    "certs": CERTS,
    "peers": PEERS,
    "leave": LEAVE,
    "service list": SERVICE_LIST,
    "capture show": CAPTURE_SHOW,
    "capture verify": CAPTURE_VERIFY,
    "capture off": CAPTURE_SWITCH,
    "capture on": CAPTURE_SWITCH,
    "hub status": HUB_STATUS,
    "hub backup": BACKUP,
    "hub hosts": HOSTS,
    "hub services": SERVICES,
    "hub audit": AUDIT,
    "hub ca status": CA,
    "hub token create": TOKEN,
    "hub token list": TOKENS,
    "hub apply": APPLY,
}


def problems(answer: Any, shape: Shape, where: str = "") -> list[str]:
    """Where ``answer`` differs from ``shape``; empty when it fits."""
    if isinstance(shape, tuple):
        found = [problems(answer, each, where) for each in shape]
        return [] if [] in found else min(found, key=len)
    if isinstance(shape, list):
        if not isinstance(answer, list):
            return [f"{where} is {answer!r}, not a list"]
        return [p for i, item in enumerate(answer) for p in problems(item, shape[0], f"{where}[{i}]")]
    if isinstance(shape, dict):
        return _of_mapping(answer, shape, where)
    if shape is Time:
        return [] if _is_time(answer) else [f"{where} is {answer!r}, not a time in RFC 3339 UTC"]
    fits = isinstance(answer, shape) and (shape is bool or not isinstance(answer, bool))
    return [] if fits else [f"{where} is {answer!r}, not {shape.__name__}"]


def _of_mapping(answer: Any, shape: dict[Any, Shape], where: str) -> list[str]:
    if not isinstance(answer, dict):
        return [f"{where} is {answer!r}, not an object"]
    if ... in shape:
        return [p for key, value in answer.items() for p in problems(value, shape[...], f"{where}.{key}")]
    keys = [f"{where}.{key} is missing" for key in shape.keys() - answer.keys()]
    keys += [f"{where}.{key} is not in the contract" for key in answer.keys() - shape.keys()]
    both = [key for key in shape if key in answer]
    return keys + [p for key in both for p in problems(answer[key], shape[key], f"{where}.{key}")]


def _is_time(answer: Any) -> bool:
    if not isinstance(answer, str) or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", answer):
        return False
    return datetime.fromisoformat(answer) is not None


def documented_keys(text: str) -> dict[str, set[str]]:
    """``docs/cli.md``'s shapes as paths of keys: ``{"peers": {"services", "services.host", …}}``."""
    section = text.split("## JSON shapes", 1)[1].split("\n## ", 1)[0]
    entries = re.findall(r"^\* `([a-z -]+)`: ((?:.|\n(?!\*))+)", section, re.MULTILINE)
    return {name: set(_paths("".join(re.findall(r"`([^`]*)`", body.split(";")[0])))) for name, body in entries}


def _paths(text: str) -> list[str]:
    found: list[str] = []
    around: list[str] = []
    last = ""
    for token in re.findall(r"[a-z_]+|[{}]", text):
        if token == "{":
            around.append(last)
        elif token == "}":
            around.pop()
        else:
            last = token
            found.append(".".join([*filter(None, around), token]))
    return found


def keys_of(shape: Shape, around: str = "") -> set[str]:
    """Every path of keys in a shape."""
    if isinstance(shape, list | tuple):
        return {key for each in shape for key in keys_of(each, around)}
    if not isinstance(shape, dict):
        return set()
    found: set[str] = set()
    for key, inner in shape.items():
        if key is not ...:
            found |= {around + key} | keys_of(inner, f"{around}{key}.")
    return found
