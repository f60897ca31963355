"""Other people's firewalls on this host: their rules as the kernel has them, and who manages them. Reads only.

Listing must not change anything either: iptables loads a legacy table's module when it is asked for it, so it is asked
only where the kernel says that the table is there.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meshagent.machine import process
from meshagent.machine.files import read_bounded
from meshagent.model.errors import MeshagentError

_FILE_LIMIT = 1 << 20
#: Rules that a person wrote are never more; a table of a million addresses is a set, and sets aren't listed.
_RULES_LIMIT = 4 << 20
_SAVE = ("iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft")


@dataclass(frozen=True, slots=True)
class Firewalls:
    """``nft``: the ruleset as libnftables-json(5) without elements of sets, None when it could not be read. ``saved``:
    command (``iptables-legacy``) -> what its ``-save`` says of the table filter, where there is one.

    ``managers``: those of ``ufw``, ``firewalld``, ``nftables.service``, ``docker`` that are in charge here. ``zone``:
    firewalld's default zone. ``flushes``: nftables.service's file flushes everybody's rules.
    """

    nft: str | None = None
    saved: Mapping[str, str] = field(default_factory=dict)
    managers: frozenset[str] = frozenset()
    zone: str = "public"
    flushes: bool = False


def read(etc: Path = Path("/etc")) -> Firewalls:
    """Everything that is there now; what can't be read is left out, never an error."""
    ruleset = _output(["nft", "--terse", "--json", "list", "ruleset"])
    return Firewalls(
        nft=ruleset,
        saved=dict(_saved(ruleset or "")),
        managers=frozenset(_managers(etc)),
        zone=_setting(etc / "firewalld/firewalld.conf", "DefaultZone") or "public",
        flushes=bool(re.search(r"^\s*flush\s+ruleset", _text(etc / "nftables.conf"), re.MULTILINE)),
    )


def _managers(etc: Path) -> list[str]:
    running = {process.comm(pid) for pid in process.pids() if process.namespace(pid) == process.namespace()}
    enabled = list((etc / "systemd/system").glob("*.wants/nftables.service"))
    signs = {
        "ufw": _setting(etc / "ufw/ufw.conf", "ENABLED").lower() == "yes",
        "firewalld": "firewalld" in running,
        "nftables.service": bool(enabled),
        "docker": "dockerd" in running,
    }
    return [name for name, sign in signs.items() if sign]


def _saved(ruleset: str) -> list[tuple[str, str]]:
    found = []
    for command in _SAVE:
        text = _output([f"{command}-save", "-t", "filter"]) if _has_table(command, ruleset) else None
        if text and ("\n-A " in text or " DROP [" in text):
            found.append((command, text))
    return found


def _has_table(command: str, ruleset: str) -> bool:
    six = command.startswith("ip6")
    if command.endswith("legacy"):
        return "filter" in _text(Path(f"/proc/net/{'ip6' if six else 'ip'}_tables_names")).split()
    wanted = ("ip6" if six else "ip", "filter")
    try:
        items = json.loads(ruleset or "{}").get("nftables", [])
    except (ValueError, AttributeError):
        return False
    tables = (item["table"] for item in items if "table" in item)
    return any((table["family"], table["name"]) == wanted for table in tables)


def _output(argv: list[str]) -> str | None:
    if not shutil.which(argv[0]):
        return None
    try:
        return process.run(argv, timeout=5, limit=_RULES_LIMIT).stdout
    except MeshagentError:
        return None


def _setting(path: Path, name: str) -> str:
    """The value of ``NAME=value`` (quotes gone); empty when it isn't set."""
    match = re.search(rf"^\s*{name}\s*=\s*[\"']?([^\s\"'#]*)", _text(path), re.MULTILINE)
    return match[1] if match else ""


def _text(path: Path) -> str:
    try:
        raw = read_bounded(path, _FILE_LIMIT)
    except (MeshagentError, OSError):
        return ""
    return (raw or b"").decode(errors="replace")
