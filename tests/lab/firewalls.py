"""Real firewall managers on lab hosts, each with everything it can do to the kernel's rules.

A manager's ``steps`` are run in order; the last one leaves nothing of it behind. Its files are in the host's own /etc.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from meshagent.lab import Host, Program, wait_until

Step = tuple[str, Callable[[], object]]

_UNIT = Path("/lib/systemd/system/nftables.service")
_COUNTERS = re.compile(r"(packets|bytes) \d+")


def ufw(host: Host) -> list[Step]:
    """Uncomplicated Firewall, refusing what comes in but ssh and mesh peers."""

    def run(line: str) -> Step:
        words = ["ufw", *(["--force"] if line in ("enable", "reset") else []), *line.split()]
        return f"ufw {line}", lambda: host.run(words, timeout=60)

    lines = ["allow 22/tcp", "allow 15008/tcp", "enable", "allow 8080/tcp", "reload", "disable", "enable", "reset"]
    return [run(line) for line in lines]


class Firewalld:
    """firewalld with a D-Bus of the host's own; ``backend`` is nftables or iptables."""

    def __init__(self, host: Host, backend: str) -> None:
        self._host = host
        self._daemon: Program | None = None
        config = host.path("/etc/firewalld/firewalld.conf")
        config.write_text(re.sub(r"FirewallBackend=\w+", f"FirewallBackend={backend}", config.read_text()))
        host.path("/run/dbus").mkdir(exist_ok=True)
        host.popen(["dbus-daemon", "--system", "--nofork", "--nopidfile"])
        wait_until(lambda: host.path("/run/dbus/system_bus_socket").exists(), what="the bus")

    def start(self) -> None:
        self._daemon = self._host.popen(["firewalld", "--nofork", "--nopid", "--log-target=console"])
        wait_until(lambda: self._ask("--state"), 30, "firewalld running")

    def stop(self) -> None:
        assert self._daemon is not None
        self._daemon.stop(20)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _ask(self, *words: str, check: bool = False) -> bool:
        return self._host.run(["firewall-cmd", *words], check=check, timeout=60).returncode == 0

    def steps(self) -> list[Step]:
        words = ("--reload", "--add-port=15008/tcp", "--complete-reload")
        asked: list[Step] = [(f"firewall-cmd {word}", lambda word=word: self._ask(word, check=True)) for word in words]  # type: ignore[misc]
        return [("firewalld starts", self.start), *asked, ("restarts", self.restart), ("stops", self.stop)]


def nftables_service(host: Host) -> list[Step]:
    """Debian's nftables.service: its own command lines, against a rule file of this host."""
    host.path("/etc/nftables.conf").write_text(
        "#!/usr/sbin/nft -f\nflush ruleset\ntable inet filter {\n chain input {\n"
        "  type filter hook input priority filter; policy accept;\n  tcp dport 23 counter drop\n }\n}\n"
    )
    lines = dict(re.findall(r"^(Exec\w+)=(.+)$", _UNIT.read_text(), re.MULTILINE))

    def run(what: str, *keys: str) -> Step:
        return f"nftables.service: {what}", lambda: [host.run(shlex.split(lines[key])) for key in keys]

    start, reload, stop = "ExecStart", "ExecReload", "ExecStop"
    return [run("start", start), run("reload", reload), run("restart", stop, start), run("stop", stop)]


def by_hand(host: Host) -> list[Step]:
    """What administrators type, and what scripts of fifteen years do."""

    def shell(line: str) -> Step:
        return line, lambda: host.run(["sh", "-ec", line])

    steps = [shell("nft add table ip theirs; nft flush ruleset")]
    for flavour in ("nft", "legacy"):
        for tool in (f"iptables-{flavour}", f"ip6tables-{flavour}"):
            steps += [
                shell(f"{tool} -t nat -A POSTROUTING -o eth9 -j MASQUERADE; {tool} -A INPUT -p tcp --dport 23 -j DROP"),
                shell(f"rules=$({tool}-save); printf '%s\\n' \"$rules\" | {tool}-restore"),
                shell(f"{tool} -F; {tool} -t nat -F; {tool} -X; {tool} -t nat -X; {tool} -P INPUT ACCEPT"),
            ]
    return [*steps, shell("nft flush ruleset")]


def theirs(host: Host, *, counted: bool = False) -> list[str]:
    """All rules that are not ours, of both flavours; ``counted``: with handles and counters."""
    text = host.run(["nft", "-a", "list", "ruleset"] if counted else ["nft", "-s", "list", "ruleset"]).stdout
    lines = [
        line for table in _tables(text) if not table.startswith("table inet meshagent") for line in table.split("\n")
    ]
    for tool in ("iptables-legacy-save", "ip6tables-legacy-save"):
        saved = host.run([tool, *(["-c"] if counted else [])]).stdout
        lines += [
            line if counted else re.sub(r"\[\d+:\d+\]", "", line) for line in saved.split("\n") if line[:1] != "#"
        ]
    return [line.strip() for line in lines if line.strip()]


def _tables(text: str) -> Iterator[str]:
    yield from re.split(r"^(?=table )", text, flags=re.MULTILINE)


def require_undisturbed(before: list[str], after: list[str]) -> None:
    """The same rules with the same handles in the same order, and no counter that stands lower than it stood."""
    assert [_plain(line) for line in after] == [_plain(line) for line in before]
    for old, new in zip(before, after, strict=True):
        assert all(a <= b for a, b in zip(_counts(old), _counts(new), strict=True)), f"{old} -> {new}"


def _plain(line: str) -> str:
    return re.sub(r"\[\d+:\d+\]", "", _COUNTERS.sub(r"\1 N", line))


def _counts(line: str) -> list[int]:
    return [
        int(number)
        for number in re.findall(r"(?:packets|bytes) (\d+)|\[(\d+):(\d+)\]", line)
        for number in number
        if number
    ]
