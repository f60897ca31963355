"""The way into the hosts of a lab that was kept: one script that runs a command on a host of its name."""

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshagent.lab.host import Host

_SCRIPT = """\
#!/bin/sh
# Runs COMMAND on a host of this lab, as its root; without one, a shell.
[ $# -gt 0 ] || {{ echo "usage: $0 HOST [COMMAND...]   hosts: {names}" >&2; exit 2; }}
host=$1
shift
[ $# -gt 0 ] || set -- "${{SHELL:-/bin/sh}}"
PATH={path}:$PATH
export PATH
case $host in
{cases}
*) echo "no host $host here; there are: {names}" >&2; exit 2 ;;
esac
"""


def write_entrance(directory: Path, hosts: Iterable["Host"]) -> Path:
    """Write ``directory``/on, the script; programs of this very installation come first on its PATH."""
    hosts = tuple(hosts)
    script = directory / "on"
    names = " ".join(host.name for host in hosts)
    path = shlex.quote(str(Path(sys.executable).parent))
    script.write_text(_SCRIPT.format(names=names, path=path, cases="\n".join(_case(host) for host in hosts)))
    script.chmod(0o755)
    return script


def _case(host: "Host") -> str:
    enter = shlex.join([*host.enter(["env", f"MESHAGENT_ROOT={host.root}", "HOME=/root"])])
    return f'{host.name}) exec {enter} "$@" ;;'
