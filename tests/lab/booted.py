"""A host that really boots: Debian 12 with systemd, networkd and resolved, on the switch of a lab.

The root is made once by mmdebstrap and kept as an archive outside the repository; each machine unpacks its own. It runs
in systemd-nspawn without registering anywhere: this machine's systemd is not asked and not told. The repository and the
tools' cache are bound into it read-only, so what runs there is this source tree.
"""

import fcntl
import hashlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meshagent.lab import Host, Lab, netns, wait_until
from meshagent.machine import process
from meshagent.machine.process import Argv

CACHE = Path(os.environ.get("MESHAGENT_CACHE", "/var/cache/meshagent-build"))
#: Last part of the address; never used again, because neighbours remember who had it.
_NUMBERS = itertools.count(100)
REPOSITORY = Path(__file__).parents[2]
_PACKAGES = (
    *("systemd", "systemd-sysv", "systemd-resolved", "libnss-resolve", "dbus", "procps", "netbase"),
    *("iproute2", "nftables", "libnftables1", "iptables", "python3"),
)
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


def root_archive() -> Path:
    """An archive of a Debian 12 root, made when it is missing (a minute)."""
    key = hashlib.sha256(" ".join(_PACKAGES).encode()).hexdigest()[:12]
    archive = CACHE / f"debian12-{key}.tar"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "debian12.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            made = archive.with_suffix(".new.tar")
            argv = ["mmdebstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", "bookworm", str(made)]
            process.run(argv, timeout=900)
            made.rename(archive)
    return archive


@dataclass
class BootedHost(Host):
    """A host whose first process is systemd. ``machine`` is its file system as this machine sees it."""

    machine: Path = Path()
    nspawn: subprocess.Popen[bytes] | None = None

    def enter(self, argv: Argv, *, user: str = "", cwd: str = "/") -> list[str]:
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"] if user else []
        spaces = ("--net", "--mount", "--uts", "--ipc", "--pid", "--cgroup")
        nsenter = ["nsenter", f"--target={self.namespaces.holder}", *spaces, f"--wdns={cwd}", "--"]
        return [*nsenter, *as_user, *(os.fspath(word) for word in argv)]

    def systemctl(self, *words: str) -> str:
        return self.run(["systemctl", *words], timeout=60).stdout.strip()

    def start_agent(self) -> None:
        """``meshagent run`` as a service, as a package would: its end leaves guard and Envoy alone."""
        settings = [f"--setenv={name}={value}" for name, value in self.environment().items() if name != "HOME"]
        unit = ["systemd-run", "--unit=meshagent", "--collect", "--property=KillMode=process", *settings]
        self.run([*unit, *self.meshagent_argv("run")])

    def boot(self) -> None:
        """Start it (again); returns when systemd says it is up."""
        argv = ["systemd-nspawn", "-D", str(self.machine), "--boot", "--network-bridge=br0", "--register=no"]
        argv += ["--keep-unit", f"--machine={self.name}", "--kill-signal=SIGRTMIN+3", "--resolv-conf=off"]
        argv += ["--link-journal=no", f"--bind-ro={REPOSITORY}", f"--bind-ro={CACHE}", f"--bind={self.root}"]
        switch = self.lab._switch
        assert switch is not None
        with (self.private / "boot.log").open("ab") as log:
            self.nspawn = self.lab.spawn(
                ["nsenter", f"--target={switch.holder}", "--net", "--", *argv],
                subprocess.DEVNULL,
                log,
                {**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
                (),
            )
        holder = wait_until(self._first_process, 30, f"{self.name} has a first process")
        self.namespaces = netns.Namespaces(holder, process.start_time(holder) or 0, process.namespace(holder) or 0)
        wait_until(lambda: self.state() in ("running", "degraded"), 60, f"{self.name} is up", 0.1)

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

    def power_off(self) -> None:
        """End it the hard way."""
        if self.nspawn is not None:
            netns.end_all({self.namespaces.net})
            self.nspawn.kill()
            self.nspawn.wait(10)
            self.nspawn = None


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


def _removed(directory: Path) -> bool:
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


@contextmanager
def booted(lab: Lab, name: str, files: Mapping[str, str] | None = None) -> Iterator[BootedHost]:
    """A booted host on the lab's switch (IPv4). ``files``: path -> text, written before it boots."""
    address, gateway = lab._address(4, next(_NUMBERS)), lab._address(4, 1)
    machine = CACHE / f"machine-{lab.name}-{name}"
    root, private = lab.directory / name, lab.directory / ".lab" / name
    for directory in (machine, root, private):
        directory.mkdir(parents=True)
    process.run(["tar", "-xf", str(root_archive()), "-C", str(machine)], timeout=120)
    network = _NETWORK.format(address=address, gateway=gateway, nameserver=lab.resolver.host.address4)
    wanted = {"etc/systemd/network/10-host0.network": network, "etc/hostname": f"{name}\n", **(files or {})}
    for path, text in wanted.items():
        (machine / path).parent.mkdir(parents=True, exist_ok=True)
        (machine / path).write_text(text)
    process.run(["systemctl", f"--root={machine}", "enable", "systemd-networkd", "systemd-resolved"])
    host = BootedHost(lab, name, root, private, address, "", netns.Namespaces(0, 0, 0), machine=machine)
    try:
        host.boot()
        lab.resolver.add(f"{name}.lab.test", "A", address)
        yield host
    finally:
        host.power_off()
        wait_until(lambda: _removed(machine), 20, f"{machine} is gone")  # it is busy until the kernel has unmounted it
