"""A machine with another kernel: QEMU without hardware support, a kernel of Debian, this machine's files.

The kernel is booted directly. Its first file system holds busybox and the modules that reach the shared one: this
machine's ``/``, read-only by virtio-fs, below a layer in memory that takes what is written. So every program a test
needs is there, at its place, and nothing of what it does outlives it. There is no network card.

What it runs is told on the serial console; it powers off by itself.
"""

import contextlib
import fcntl
import lzma
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from meshagent.lab import wait_until
from tests.lab.downloads import Download

#: Debian 12 has it with QEMU, Debian 13 as a package of its own.
_VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
#: What has to be loaded before there are files; a kernel that has one built in doesn't name it.
_FIRST = ("virtio_pci", "virtiofs", "overlay")

#: What is waited for is waited for in real time, and on a busy machine the first read of a file takes long: so what
#: the guard gives 4 s, iptables-legacy-restore, has its files and modules before.
_EARLY = (
    *(f"{family}table_{name}" for family in ("ip", "ip6") for name in ("filter", "nat", "mangle", "raw")),
    *("xt_addrtype", "xt_comment", "xt_connmark", "xt_conntrack", "xt_CT", "xt_mark", "xt_multiport", "xt_owner"),
    *("xt_recent", "xt_REDIRECT", "xt_socket", "xt_tcpudp", "ipt_REJECT", "ip6t_REJECT"),
)

_INIT = """\
#!/bin/busybox sh
set -e
busybox mount -t devtmpfs dev /dev
for module in /modules/*; do busybox insmod "$module"; done
busybox mount -t virtiofs -o ro files /files
busybox mount -t tmpfs memory /memory
busybox mkdir /memory/upper /memory/work
busybox mount -t overlay -o lowerdir=/files,upperdir=/memory/upper,workdir=/memory/work all /all
busybox mount -t devtmpfs dev /all/dev
exec busybox switch_root /all {script}
"""
_SCRIPT = """\
#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /dev/shm /dev/pts /lib/modules
for directory in /run /dev/shm; do mount -t tmpfs tmpfs $directory; done
mkdir /run/repository; mount --bind {directory} /run/repository  # it may be below /tmp
mount -t tmpfs tmpfs /tmp; mkdir -p {directory}; mount --bind /run/repository {directory}
mount -t devpts devpts /dev/pts
ln -s {modules} /lib/modules/
ip link set lo up
stty -F /dev/ttyS0 -onlcr
modprobe --all {early}
cat /usr/sbin/xtables-*-multi /usr/lib/*/xtables/*.so >/dev/null
cd {directory}
{commands}
{python} -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)'
"""


@dataclass(frozen=True)
class Kernel:
    """A kernel of Debian with its modules, unpacked and indexed."""

    top: Path

    @property
    def image(self) -> Path:
        (image,) = (self.top / "boot").glob("vmlinuz-*")
        return image

    @property
    def release(self) -> str:
        """As uname says it."""
        return self.image.name.removeprefix("vmlinuz-")

    @property
    def modules(self) -> Path:
        return self.top / "lib/modules" / self.release

    def files_of(self, *names: str) -> list[Path]:
        """Modules with what they depend on, in the order in which they can be loaded."""
        depends = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, _, needs = line.partition(":")
            depends[Path(path).stem.replace("-", "_")] = [self.modules / need for need in (path, *needs.split())]
        return list(dict.fromkeys(file for name in names for file in reversed(depends.get(name, []))))


def unpacked(download: Download) -> Kernel:
    """Once for each download; later calls find it."""
    archive = download.archive()
    top = archive.with_suffix("").with_name(f"kernel-{archive.stem}")
    with top.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not top.exists():
            making = top.with_suffix(".new")
            shutil.rmtree(making, ignore_errors=True)
            _unpack(archive, making)
            making.rename(top)
    return Kernel(top)


def _unpack(archive: Path, top: Path) -> None:
    top.mkdir()
    words = ["--wildcards", "./boot/vmlinuz-*", "./*lib/modules/*"]
    subprocess.run(["tar", "-xf", archive, "-C", top, *words], check=True)
    if (top / "usr").exists():  # Debian 13
        (top / "usr/lib").rename(top / "lib")
    for packed in top.rglob("*.ko.xz"):  # busybox reads plain ones
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    subprocess.run(["depmod", "-b", top, Kernel(top).release], check=True)


def run(kernel: Kernel, commands: str, directory: Path, python: str, private: Path, deadline: float) -> str:
    """Boot it, run ``commands`` (lines of bash) in ``directory``, power off; what the console said.

    ``deadline`` (s) tells a hang: the machine is then ended, and what it said until then is returned. ``private``: a
    directory for its files, readable inside at the same path.
    """
    script = private / "script"
    told = {"modules": kernel.modules, "directory": directory, "commands": commands, "python": python}
    script.write_text(_SCRIPT.format(early=" ".join(_EARLY), **told))
    script.chmod(0o755)
    first = _first_files(kernel, script, private)
    with _shared_files(private) as socket:
        argv = ["qemu-system-x86_64", "-machine", "q35,memory-backend=memory", "-accel", "tcg", "-cpu", "max,la57=off"]
        argv += ["-icount", "shift=0"]
        argv += ["-m", "1536M", "-object", "memory-backend-memfd,id=memory,size=1536M,share=on"]
        argv += ["-chardev", f"socket,id=files,path={socket}", "-device", "vhost-user-fs-pci,chardev=files,tag=files"]
        argv += ["-kernel", str(kernel.image), "-initrd", str(first), "-nic", "none", "-display", "none", "-no-reboot"]
        argv += ["-append", "console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off"]
        argv += ["-serial", f"file:{private}/console"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=deadline, check=True)
    return (private / "console").read_text(errors="replace").replace("\r", "")


@contextlib.contextmanager
def _shared_files(private: Path) -> Iterator[Path]:
    """virtiofsd, serving ``/`` for one machine at the socket; it ends with the machine."""
    program = next(filter(os.path.exists, _VIRTIOFSD))
    socket = private / "files.sock"
    argv = [program, f"--socket-path={socket}", "-o", "source=/,cache=always,sandbox=chroot"]
    with (private / "virtiofsd.log").open("wb") as log, subprocess.Popen(argv, stdout=log, stderr=log) as serving:
        try:
            wait_until(socket.exists, 20, "virtiofsd")
            yield socket
        finally:
            serving.kill()


def _first_files(kernel: Kernel, script: Path, private: Path) -> Path:
    """The archive that the kernel unpacks into memory."""
    top = private / "first"
    for name in ("bin", "modules", "dev", "files", "memory", "all"):
        (top / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", top / "bin/busybox")
    for number, module in enumerate(kernel.files_of(*_FIRST)):
        shutil.copy(module, top / "modules" / f"{number:02}-{module.name}")
    (top / "init").write_text(_INIT.format(script=script))
    (top / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(top)) for path in sorted(top.rglob("*")))
    made = private / "first.cpio"
    with made.open("wb") as out:
        argv = ["/bin/busybox", "cpio", "-o", "-H", "newc"]
        subprocess.run(argv, input=names.encode(), stdout=out, stderr=subprocess.DEVNULL, cwd=top, check=True)
    return made
