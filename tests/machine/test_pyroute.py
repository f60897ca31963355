"""What the daemon loads of pyroute2, and that it works."""

import subprocess
import sys


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_what_is_only_read_is_read_without_the_library() -> None:
    code = (
        "import sys\n"
        "from meshagent.machine import netlink, sockets\n"
        "netlink.addresses(); netlink.gateways(); sockets.listeners(); netlink.set_ours((), ())\n"
        "print([name for name in sys.modules if name.startswith('pyroute2')])"
    )
    assert _python(code).strip() == "[]"


def test_changes_load_the_library_without_the_parts_of_it_that_nobody_uses() -> None:
    code = (
        "import sys\n"
        "from meshagent.machine import netlink, pyroute\n"
        "with pyroute.iproute()() as ip: assert list(ip.get_links())\n"
        "print(sorted(name for name in sys.modules if name in ('pyroute2.ndb', 'pyroute2.ipvs', 'pyroute2.iproute')))"
    )
    assert _python(code).strip() == "['pyroute2.iproute']"


def test_a_program_that_imported_all_of_the_library_keeps_it() -> None:
    modules = "import pyroute2; from meshagent.machine import netlink, pyroute"
    code = f"{modules}; pyroute.iproute(); print(pyroute2.NDB.__name__)"
    assert _python(code).strip() == "NDB"
