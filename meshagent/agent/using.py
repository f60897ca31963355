"""Who uses the mesh on this host right now: asked before it leaves."""

import contextlib
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from meshagent.agent.judge.inuse import candidates, dead_ones, in_use_risk, users
from meshagent.agent.judge.risks import Risk
from meshagent.agent.judge.values import OpenConnection
from meshagent.machine import sockets
from meshagent.model.address import IPAddress, MeshAddress, parse_ip
from meshagent.model.marks import AGENT_MARK

#: A machine in the same country answers within 100 ms; a lost SYN is sent again after 1 s.
_ANSWER_SECONDS = 3.0
_MOST_ASKED = 64


def mesh_users(facts: Mapping[str, Any], peers: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Risk, ...]]:
    """(a line for each user, the risk of leaving). ``facts`` and ``peers`` are the daemon's answers to ``plan.facts``
    and ``peers``, empty where none answers: then only virtual addresses are known. Blocks at most three seconds."""
    mesh = frozenset(MeshAddress(ip, port) for text, port in facts.get("mesh", ()) if (ip := parse_ip(text)))
    claimed = frozenset(address for address in mesh if not address.virtual)
    found = [_open(each) for each in sockets.connections()]
    asked = list(islice(sorted(candidates(found, claimed), key=str), _MOST_ASKED))
    with ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
        answers = dict(zip(asked, pool.map(_lives, asked), strict=True))
    lines = users(found, dead_ones(asked, answers.__getitem__), _names(peers))
    return lines, tuple(in_use_risk(lines))


def names_asked(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Names of the mesh that programs here asked for lately: ``name, times, seconds_ago``. ``facts`` as above.

    No reason to refuse by itself (whoever tried a name once before leaving did it, too), but worth a word.
    """
    return [{**each, "seconds_ago": round(each["seconds_ago"])} for each in facts.get("asked", ())]


def _lives(address: MeshAddress) -> bool:
    """Whether somebody accepts there without the mesh: our mark goes past capture."""
    family = socket.AF_INET if address.ip.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, AGENT_MARK)
        probe.settimeout(_ANSWER_SECONDS)
        probe.connect((str(address.ip), address.port))
        return True
    return False


def _names(peers: Mapping[str, Any]) -> dict[IPAddress, str]:
    return {
        ip: str(service["host"])
        for service in peers.get("services", ())
        for text in service["addresses"]
        if (ip := parse_ip(text))
    }


def _open(found: sockets.Connection) -> OpenConnection:
    owner = found.owners[-1] if found.owners else None
    ends = found.local_ip, found.local_port, found.remote_ip, found.remote_port
    return OpenConnection(*ends, owner.name if owner else "", owner.pid if owner else 0)
