"""What the daemon loads of pyroute2, and that it works."""

import subprocess
import sys


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_links_and_sockets_are_read_without_the_parts_of_the_library_that_nobody_uses() -> None:
    code = (
        "import sys\n"
        "from meshagent.machine import netlink, sockets\n"
        "netlink.addresses(); netlink.gateways(); sockets.listeners()\n"
        "print(sorted(name for name in sys.modules if name in ('pyroute2.ndb', 'pyroute2.ipvs', 'pyroute2.iproute')))"
    )
    assert _python(code).strip() == "['pyroute2.iproute']"


def test_a_program_that_imported_all_of_the_library_keeps_it() -> None:
    code = "import pyroute2; from meshagent.machine import netlink; netlink.addresses(); print(pyroute2.NDB.__name__)"
    assert _python(code).strip() == "NDB"
