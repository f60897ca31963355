"""Legacy services whose access rules go by the caller's address, started on a lab host with data of their own.

What makes them worth a file: each trusts loopback by default (pg_hba's ``trust``, Postfix's ``mynetworks``), so a proxy
that calls them from 127.0.0.1 would open them to everybody. ``recipes`` holds the others.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from meshagent.lab.host import Host
from meshagent.lab.recipes import Service, directory_of, until
from meshagent.machine import process

#: Debian keeps each version's programs apart (postgresql-common).
_POSTGRES = Path("/usr/lib/postgresql")
_LOOPBACK_TRUST = ("local all all trust", "host all all 127.0.0.1/32 trust", "host all all ::1/128 trust")


def postgresql(host: Host, port: int = 5432, *, hba: Sequence[str] = (), listen: str = "*") -> Service:
    """PostgreSQL with the superuser ``postgres``; ``hba`` are lines of pg_hba.conf behind the usual trust in loopback.

    Raises ``MeshagentError`` when there is no PostgreSQL on this machine.
    """
    programs = _newest(_POSTGRES)
    directory = directory_of(host, f"postgresql-{port}", "postgres")
    data = directory / "data"
    made = [programs / "initdb", "-D", data, "-U", "postgres", "--no-sync", "--no-instructions", "-E", "UTF8"]
    host.run([str(word) for word in made], user="postgres", timeout=120)
    (data / "pg_hba.conf").write_text("".join(f"{line}\n" for line in (*_LOOPBACK_TRUST, *hba)))
    argv = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-k", str(directory), "-F"]
    argv += ["-c", "dynamic_shared_memory_type=mmap"]  # in its directory: a killed one leaves nothing in /dev/shm
    argv += ["-c", f"listen_addresses={listen}", "-c", "shared_buffers=4MB", "-c", "max_connections=20"]
    program = host.popen(argv, log=f"postgresql-{port}", user="postgres")
    ask = ["psql", "-h", str(directory), "-p", str(port), "-U", "postgres", "-Atc", "select 1"]
    until(program, lambda: host.run(ask).stdout == "1\n", timeout=60)
    return Service(program, port, directory)


def _newest(top: Path) -> Path:
    found = sorted(top.glob("*/bin"), key=lambda path: float(path.parent.name))
    if not found:
        raise process.ProgramError("no-postgresql", ["initdb"], f"there is no version below {top}", returncode=127)
    return found[-1]


_MAIN = """\
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file = /dev/stdout
mynetworks = {networks}
mydestination = $myhostname
myhostname = {name}.lab.test
inet_interfaces = all
inet_protocols = {families}
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
smtpd_peername_lookup = no
alias_maps =
local_recipient_maps =
"""


def postfix(host: Host, *, networks: str = "127.0.0.0/8 [::1]/128") -> Service:
    """Postfix on port 25 that relays for ``networks`` (as in ``mynetworks``) and takes mail for itself only.

    Its configuration is in the host's own /etc, spool and state below its directory.
    """
    directory = directory_of(host, "postfix", "root")
    for name, owner in (("queue", "root"), ("data", "postfix")):
        directory_of(host, f"postfix/{name}", owner)
    families = "all" if len(host.addresses) > 1 else "ipv6" if host.address6 else "ipv4"
    main = _MAIN.format(directory=directory, networks=networks, name=host.name, families=families)
    host.path("/etc/postfix/main.cf").write_text(main)
    services = host.path("/etc/postfix/master.cf")
    unjailed = re.sub(r"^(\w+\s+(?:inet|unix)\s+\S+\s+\S+\s+)y", r"\1n", services.read_text(), flags=re.MULTILINE)
    services.write_text(unjailed)  # a jail would need the machine's /etc copied into the queue
    program = host.popen(["postfix", "start-fg"], log="postfix")
    until(program, lambda: _greets(host), timeout=30)
    return Service(program, 25, directory)


def _greets(host: Host) -> bool:
    with host.connect(host.address, 25, timeout=5) as client:
        return client.recv(256).startswith(b"220 ")
