"""A host that really boots: Debian with systemd, networkd and resolved, on the switch of a lab, our units installed.

Each machine unpacks a root of its own (downloads.py). It runs
in systemd-nspawn without registering anywhere: this machine's systemd is not asked and not told. What a package would
install is bound in read-only below /opt/meshagent: this source tree, the Python modules it needs, Envoy. The units are
those of packaging/systemd, the program is /usr/bin/meshagent, its files are the machine's own /etc, /var and /run.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshagent.lab import Host, Lab, netns, wait_until
from meshagent.lab.waiting import patience
from meshagent.machine import process
from meshagent.machine.process import Argv
from tests.conftest import envoy_binary
from tests.lab.downloads import CACHE, DEBIAN12, Download
from tests.lab.mesh import FAILURES

#: Last part of the address; never used again, because neighbours remember who had it.
_NUMBERS = itertools.count(100)
REPOSITORY = Path(__file__).parents[2]
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MACHINES = re.compile(r"machine-(ma-[0-9a-f]{6})-.*")


_PROGRAM = """\
#!/bin/sh
export PYTHONPATH=/opt/meshagent/lib
exec /opt/meshagent/venv/bin/python -m meshagent.cli.entry "$@"
"""
_NETWORK = """\
[Match]
Name=host0
[Network]
Address={address}/16
Gateway={gateway}
DNS={nameserver}
LinkLocalAddressing=no
LLMNR=no
MulticastDNS=no
"""


@dataclass
class BootedHost(Host):
    """A host whose first process is systemd. ``root`` is its file system as this machine sees it (without tmpfs)."""

    nspawn: subprocess.Popen[bytes] | None = None

    # --- programs

    def enter(self, argv: Argv, *, user: str = "", cwd: str = "/") -> list[str]:
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"] if user else []
        spaces = ("--net", "--mount", "--uts", "--ipc", "--pid", "--cgroup")
        nsenter = ["nsenter", f"--target={self.namespaces.holder}", *spaces, f"--wdns={cwd}", "--"]
        return [*nsenter, *as_user, *(os.fspath(word) for word in argv)]

    def run(self, argv: Argv, *, timeout: float = 20.0, **options: Any) -> subprocess.CompletedProcess[str]:
        """A whole operating system shares this machine with its tests, so a deadline only tells a hang."""
        return super().run(argv, timeout=timeout * patience(), **options)

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a login has: the program finds everything where a package put it."""
        return {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **(more or {})}

    def meshagent_argv(self, *args: str) -> list[str]:
        return ["meshagent", *args]

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.run(["systemctl", *words], timeout=60, check=check).stdout.strip()

    def main_pid(self, unit: str) -> int:
        """Of a service, as counted inside; 0 while it doesn't run."""
        return int(self.systemctl("show", "--property=MainPID", "--value", unit))

    def journal(self, *words: str) -> str:
        """What units of this boot wrote; ``words``: options of journalctl."""
        return self.run(["journalctl", "--boot", "--no-pager", "--output=cat", *words]).stdout

    def faults(self) -> list[str]:
        """Lines of our units' journal, of all boots, that no healthy run has."""
        units = [f"--unit={unit.stem}" for unit in _units()]
        said = self.run(["journalctl", "--no-pager", "--output=short-monotonic", *units]).stdout
        return [line for line in said.splitlines() if any(failure in line for failure in FAILURES)]

    # --- life

    def boot(self) -> None:
        """Start it (again); returns when systemd says it is up."""
        argv = ["systemd-nspawn", "-D", str(self.root), "--boot", "--network-bridge=br0", "--register=no"]
        argv += ["--keep-unit", f"--machine={self.name}", "--kill-signal=SIGRTMIN+3", "--resolv-conf=off"]
        # What container runtimes ask for beyond nspawn's own choice: runc's keyrings, device rules of cgroup v2.
        argv += ["--system-call-filter=@keyring bpf", "--capability=CAP_BPF"]
        argv += ["--link-journal=no", *(f"--bind-ro={there}:{here}" for here, there in _installed(self.root))]
        switch = self.lab._switch
        assert switch is not None
        with (self.private / "boot.log").open("ab") as log:
            self.nspawn = self.lab.spawn(
                ["nsenter", f"--target={switch.holder}", "--net", "--", *argv],
                subprocess.DEVNULL,
                log,
                {**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                (),
            )
        holder = wait_until(self._first_process, 60, f"{self.name} has a first process")
        self.namespaces = netns.Namespaces(holder, process.start_time(holder) or 0, process.namespace(holder) or 0)
        wait_until(lambda: self.state() in ("running", "degraded"), 120, f"{self.name} is up", 0.1)

    def reboot(self) -> None:
        """As an administrator does: every unit is stopped in order."""
        self.run(["systemctl", "reboot"], check=False)
        assert self.nspawn is not None
        self.nspawn.wait(90 * patience())
        self.power_off()
        self.boot()

    def power_off(self) -> None:
        """End it the hard way; returns when its cable has left the switch."""
        if self.nspawn is not None:
            netns.end_all({self.namespaces.net})
            self.nspawn.kill()
            self.nspawn.wait(10)
            self.nspawn = None
            wait_until(lambda: not self.lab._has_link(self), 30, f"the link of {self.name} leaving the switch")

    def state(self) -> str:
        return self.run(["systemctl", "is-system-running"], check=False, timeout=30).stdout.strip()

    def _first_process(self) -> int:
        """The pid, as this machine counts, of the process that is number 1 inside; 0 while there is none."""
        assert self.nspawn is not None
        assert self.nspawn.poll() is None, (self.private / "boot.log").read_text()
        own = process.namespace(self.nspawn.pid)
        for pid in _below(self.nspawn.pid):
            numbers = [line.split() for line in _status(pid) if line.startswith("NSpid:")]
            if numbers and numbers[0][-1] == "1" and process.namespace(pid) not in (None, own):
                return pid
        return 0


def _below(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from _below(child)


def _status(pid: int) -> Sequence[str]:
    try:
        return Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return ()


def _units() -> list[Path]:
    return sorted((REPOSITORY / "packaging/systemd").glob("*.service"))


def _installed(root: Path) -> Iterator[tuple[str, Path]]:
    """Path inside -> what of this machine is seen there."""
    yield "/opt/meshagent/lib/meshagent", REPOSITORY / "meshagent"
    yield "/opt/meshagent/venv", Path(sys.prefix)
    yield "/opt/meshagent/bin/envoy", envoy_binary().resolve()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not (root / "usr/lib" / version / "os.py").exists():
        yield f"/usr/bin/{version}", Path(f"/usr/bin/{version}")
        yield f"/usr/lib/{version}", Path(f"/usr/lib/{version}")


def _install(root: Path) -> None:
    """What a package's files and scripts would do."""
    (root / "usr/bin/meshagent").write_text(_PROGRAM)
    (root / "usr/bin/meshagent").chmod(0o755)
    python = root / "usr/bin/python3"
    if not python.is_symlink():
        python.symlink_to(f"python{sys.version_info.major}.{sys.version_info.minor}")
    modules = root / "usr/lib/python3/dist-packages"
    modules.mkdir(parents=True, exist_ok=True)
    (modules / "meshagent").symlink_to("/opt/meshagent/lib/meshagent")
    for unit in _units():
        shutil.copy(unit, root / "usr/lib/systemd/system" / unit.name)
    (root / "var/log/journal").mkdir(exist_ok=True)  # it is kept over a reboot


def _removed(directory: Path) -> bool:
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


def _sweep() -> None:
    """Machines of labs that were killed."""
    for found in CACHE.glob("machine-*"):
        lab = _MACHINES.fullmatch(found.name)
        if lab and not Path("/run", lab[1]).exists():
            _removed(found)
            _lock_file(found).unlink(missing_ok=True)


def _lock_file(machine: Path) -> Path:
    """systemd-nspawn leaves it behind."""
    return machine.with_name(f".#{machine.name}.lck")


@contextmanager
def booted(
    lab: Lab, name: str, files: Mapping[str, str] | None = None, root: Download = DEBIAN12
) -> Iterator[BootedHost]:
    """A booted host on the lab's switch (IPv4). ``files``: path -> text, written before it boots.

    ``name`` has at most 12 characters, because it becomes part of the name of its link. Our units are installed, not
    enabled: ``meshagent enroll`` does that.
    """
    assert len(name) <= 12, name
    _sweep()
    address, gateway = lab._address(4, next(_NUMBERS)), lab._address(4, 1)
    machine, private = CACHE / f"machine-{lab.name}-{name}", lab.directory / ".lab" / name
    for directory in (machine, private):
        directory.mkdir(parents=True)
    process.run(["tar", "-xf", root.archive(), "-C", machine], timeout=300)
    _install(machine)
    network = _NETWORK.format(address=address, gateway=gateway, nameserver=lab.resolver.host.address4)
    wanted = {"etc/systemd/network/10-host0.network": network, "etc/hostname": f"{name}\n", **(files or {})}
    for path, text in wanted.items():
        (machine / path).parent.mkdir(parents=True, exist_ok=True)
        (machine / path).write_text(text)
    for verb, *units in (("enable", "systemd-networkd", "systemd-resolved"), ("disable", "ssh")):
        process.run(["systemctl", f"--root={machine}", verb, *units])
    host = BootedHost(lab, name, machine, private, address, "", netns.Namespaces(0, 0, 0), f"vb-{name}")
    try:
        host.boot()
        lab.resolver.add(f"{name}.lab.test", "A", address)
        yield host
        assert not host.faults(), "\n".join(host.faults())
    finally:
        host.power_off()
        wait_until(lambda: _removed(machine), 60, f"{machine} is gone")  # it is busy until the kernel has unmounted it
        _lock_file(machine).unlink(missing_ok=True)
