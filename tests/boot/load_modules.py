"""``load_modules.py DIR``: what legacy iptables and a lab need; there is no modprobe in that machine."""

import ctypes
import os
import re
import sys
from pathlib import Path

_FINIT_MODULE = 313  # x86_64
_WANTED = re.compile(
    r"/net/(netfilter|ipv[46]/netfilter)/(x_|xt_|ip_|ipt|ip6|nf_conntrack\.|nf_nat\.|nf_defrag|nf_reject)"
)
_ALSO = ("ipv6", "veth", "bridge", "overlay", "inet_diag", "tcp_diag", "unix_diag")


def main(top: Path) -> None:
    files = {path.stem.replace("-", "_"): path for path in top.rglob("*.ko")}
    loaded: set[str] = set()
    for name in [name for name, path in files.items() if _WANTED.search(str(path))] + list(_ALSO):
        _load(name, files, loaded)


def _load(name: str, files: dict[str, Path], loaded: set[str]) -> None:
    if name in loaded or name not in files:
        return
    loaded.add(name)
    needs = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
    for other in filter(None, needs[1].decode().split(",") if needs else []):
        _load(other.replace("-", "_"), files, loaded)
    descriptor = os.open(files[name], os.O_RDONLY)
    ctypes.CDLL(None).syscall(_FINIT_MODULE, descriptor, b"", 0)
    os.close(descriptor)


main(Path(sys.argv[1]))
