"""Access rules by address mean what they meant: real databases and a mail server see their caller's own address.

All of them trust loopback. A proxy that calls them from there would open them to the whole mesh.
"""

import smtplib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.lab import Host, recipes, trusting
from tests.lab.mesh import Mesh, open_mesh

#: Real programs by the dozen: 15 s of a quiet machine, and nothing that may hang for long.
pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

SERVICES = [
    ("maria", 3306, "mysql"),
    ("pg", 5432, "tcp"),
    ("pginside", 5433, "tcp"),
    ("mail", 25, "tcp"),
    ("guarded", 6379, "redis"),
]


@pytest.fixture(
    scope="module",
    params=[pytest.param((4,), id="ipv4"), pytest.param((6,), id="ipv6", marks=pytest.mark.long)],
)
def mesh(request: pytest.FixtureRequest, envoy: Path) -> Iterator[Mesh]:
    """``web`` and ``other`` call the services of ``db``, which name only ``web``."""
    with open_mesh(request.param) as opened:
        web, other, db = (opened.lab.host(name) for name in ("web", "other", "db"))
        width = 32 if request.param == (4,) else 128
        grants = "".join(
            f"CREATE USER '{name}'@'{address}'; GRANT ALL ON app.* TO '{name}'@'{address}';\n"
            for name, address in (("here", "127.0.0.1"), ("here", "::1"), ("here", "localhost"), ("web", web.address))
        )
        recipes.mariadb(db, sql=grants.replace("; ", ";\n"))
        hba = [f"host all web {web.address}/{width} trust"]
        for port, listen in ((5432, "*"), (5433, "localhost")):
            made = trusting.postgresql(db, port, hba=hba, listen=listen)
            db.run(
                ["psql", "-h", str(made.directory), "-p", str(port), "-U", "postgres", "-c", "create role web login"]
            )
        trusting.postfix(db, networks=f"127.0.0.0/8 [::1]/128 {bracketed(web.address)}/{width}")
        recipes.redis(db)
        db.run(["redis-cli", "config", "set", "protected-mode", "yes"])
        opened.join_all((web, []), (other, []), (db, SERVICES))
        yield opened


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def asked(host: Host, *argv: str) -> str:
    """What a client program printed, errors too."""
    done = host.run(["timeout", "8", *argv], check=False, timeout=15)
    return (done.stdout + done.stderr).strip()


def maria(host: Host, user: str, server: str = "maria.default.mesh.internal") -> str:
    return asked(
        host, "mariadb", "--no-defaults", "--skip-ssl", "-h", server, "-u", user, "-Ne", "select current_user()"
    )


def test_mariadb_grants_name_the_caller_and_loopback_grants_stay_local(mesh: Mesh) -> None:
    web, other, db = (mesh.members[name] for name in ("web", "other", "db"))
    assert maria(web, "web") == f"web@{web.address}"
    assert f"Access denied for user 'web'@'{other.address}'" in maria(other, "web")
    assert f"Access denied for user 'here'@'{web.address}'" in maria(web, "here")
    assert maria(db, "here", "::1" if ":" in db.address else "127.0.0.1").startswith("here@")


def pg(host: Host, user: str, service: str, query: str = "select host(inet_client_addr())") -> str:
    server = f"{service}.default.mesh.internal" if "." not in service and ":" not in service else service
    port = "5433" if service == "pginside" else "5432"
    return asked(host, "psql", "-h", server, "-p", port, "-U", user, "-d", "postgres", "-Atc", query)


def test_pg_hba_lines_name_the_caller_and_trust_in_loopback_is_not_for_mesh_callers(mesh: Mesh) -> None:
    web, other, db = (mesh.members[name] for name in ("web", "other", "db"))
    assert pg(web, "web", "pg") == web.address
    assert f'no pg_hba.conf entry for host "{other.address}"' in pg(other, "web", "pg")
    for caller in (web, other):
        assert f'no pg_hba.conf entry for host "{caller.address}"' in pg(caller, "postgres", "pg")
    assert pg(db, "postgres", "::1" if ":" in db.address else "127.0.0.1") in ("127.0.0.1", "::1")


def test_a_database_on_loopback_only_is_reached_but_never_from_a_loopback_address(mesh: Mesh) -> None:
    """The kernel doesn't route answers from loopback to the outside, so it sees the host's own address instead."""
    web, db = mesh.members["web"], mesh.members["db"]
    said = pg(web, "postgres", "pginside")
    assert f'no pg_hba.conf entry for host "{db.address}"' in said


def relays(host: Host, server: str) -> tuple[int, bytes]:
    """What the mail server says to mail for elsewhere."""

    def resolve_and_ask() -> tuple[int, bytes]:
        with smtplib.SMTP(server, 25, local_hostname="client.test", timeout=10) as client:
            client.mail("sender@client.test")
            return client.rcpt("somebody@elsewhere.test")

    return host.inside(resolve_and_ask)


def test_a_mail_server_relays_for_whom_it_named_and_is_no_open_relay_for_the_mesh(mesh: Mesh) -> None:
    web, other, db = (mesh.members[name] for name in ("web", "other", "db"))
    server = mesh.resolve(web, "mail.default.mesh.internal")[0]
    assert relays(web, server)[0] == 250
    code, said = relays(other, server)
    assert (code, b"Relay access denied" in said) == (554, True), said
    assert relays(db, "::1" if ":" in db.address else "127.0.0.1")[0] == 250
    log = next(program for program in mesh.lab.programs if program.argv[0] == "postfix").text()
    assert f"[{other.address}]" in log, "the mail log names the caller"


def test_redis_in_protected_mode_refuses_the_mesh_as_it_refuses_every_other_host(mesh: Mesh) -> None:
    web, db = mesh.members["web"], mesh.members["db"]
    assert "protected mode" in mesh.redis(web, "guarded")
    family = socket.AF_INET6 if ":" in db.address else socket.AF_INET
    local = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    assert asked(db, "redis-cli", "-h", local, "ping") == "PONG"
