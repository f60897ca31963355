"""What comes from Debian's archive for machines that boot: roots, kernels. Kept outside the repository, as tar files.

Tests run in a network namespace without a way out, so they can't fetch anything: ``packaging/dev/setup long`` runs this
file, which makes what is missing (15 to 60 s each).
"""

import fcntl
import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("MESHAGENT_CACHE", "/var/cache/meshagent-build"))


@dataclass(frozen=True)
class Download:
    """Packages of a Debian by its code name, with what they depend on.

    ``variant`` is mmdebstrap's: ``minbase`` installs a system, ``extract`` only unpacks. ``hook`` is shell that it runs
    before it asks the sources in ``"$1"/etc/apt``.
    """

    suite: str
    packages: tuple[str, ...]
    variant: str = "minbase"
    hook: str = ""

    @property
    def path(self) -> Path:
        key = hashlib.sha256(" ".join(self.packages).encode()).hexdigest()[:12]
        return CACHE / f"{self.suite}-{key}.tar"

    def archive(self) -> Path:
        """The tar file; fails with the command that makes it."""
        assert self.path.exists(), f"{self.path} is missing: `packaging/dev/setup long` makes it"
        return self.path

    def make(self) -> None:
        made = self.path.with_suffix(".new.tar")
        argv = ["mmdebstrap", f"--variant={self.variant}", f"--include={','.join(self.packages)}"]
        argv += ["--dpkgopt=force-unsafe-io", *([f"--setup-hook={self.hook}"] if self.hook else [])]
        argv += [self.suite, str(made)]
        subprocess.run(argv, check=True, timeout=1800, stdin=subprocess.DEVNULL)
        made.rename(self.path)


_COMMON = (
    *("systemd", "systemd-sysv", "systemd-resolved", "libnss-resolve", "dbus", "procps", "netbase"),
    *("iproute2", "nftables", "libnftables1", "iptables", "openssh-server"),
)
DEBIAN12 = Download("bookworm", (*_COMMON, "python3"))
DEBIAN12_DOCKER = Download("bookworm", (*_COMMON, "python3", "docker.io", "redis-server"))
#: Without a Python of its own: ours is bound in, as a package that brings its own would.
DEBIAN13 = Download("trixie", (*_COMMON, "libexpat1", "libffi8", "libsqlite3-0", "libssl3t64", "redis-server"))

_KERNEL = ("linux-image-cloud-amd64",)
#: The security archive of Debian 11 forgets what its index still names; its last release is complete.
KERNEL_5_10 = Download("bullseye", _KERNEL, "extract", 'sed -i /security/d "$1"/etc/apt/sources.list')
KERNEL_6_1 = Download("bookworm", _KERNEL, "extract")
KERNEL_6_12 = Download("trixie", _KERNEL, "extract")

ALL = (DEBIAN12, DEBIAN12_DOCKER, DEBIAN13, KERNEL_5_10, KERNEL_6_1, KERNEL_6_12)


def main() -> None:
    """Make what is missing; a line for each."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "downloads.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for wanted in ALL:
            if not wanted.path.exists():
                sys.stdout.write(f"fetching {wanted.suite}: {' '.join(wanted.packages)}\n")
                sys.stdout.flush()
                wanted.make()


if __name__ == "__main__":
    main()
