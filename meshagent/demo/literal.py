"""Step ``hard-coded-ip``: the address compiled into a client works on, encrypted, though its machine is gone.

The database moves from olddb to db and olddb is switched off; web's client keeps the old literal in its configuration.
A ServiceEntry claims the literal (and db's own, which clients may know by now), so the mesh owns address and port.
"""

from pathlib import Path

from meshagent.demo.narrator import StepResult, check
from meshagent.demo.world import ORDER, World
from meshagent.lab import Host
from meshagent.model.errors import MeshagentError

PORT = 3306
_CONFIG = """\
[client]
host={address}
port=3306
user=app
password=app
connect-timeout=2
skip-ssl
"""
_CLAIM = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: orders-db, namespace: default}}
spec:
  hosts: [orders-db.default.mesh.internal]
  location: MESH_INTERNAL
  resolution: STATIC
  addresses: [{addresses}]
  ports: [{{number: 3306, name: mysql, protocol: MYSQL}}]
  workloadSelector: {{labels: {{app: db}}}}
"""


def configure_client(world: World) -> Path:
    """The application's configuration on web, with a literal address in it; written once, never changed."""
    path = world.web.private / "orders.cnf"
    path.write_text(_CONFIG.format(address=world.olddb.address))
    return path


def hard_coded_ip(world: World, result: StepResult) -> None:
    """Before, moved, gone, claimed: the same client with the same configuration."""
    config, literal = configure_client(world), world.olddb.address
    world.tell.note(f"{config.name} on web: host={literal} port={PORT}")
    check(_ask(world, config) == f"{ORDER} from olddb", "the client doesn't work before the move")
    _move(world)
    check(not _reaches(world.web, literal), f"{literal} answers, but its machine is gone")
    world.tell.note(f"olddb is switched off: nobody has {literal} any more, the client fails")
    _claim(world)
    world.wait("the claim on web", lambda: _ask(world, config, tell=False))
    with world.web.capture(f"tcp and (host {literal} or host {world.db.address})") as seen:
        answer = _ask(world, config)
    check(answer == f"{ORDER} from db", f"the unchanged client got {answer!r}")
    tunnelled = len(seen.tshark("tcp.port == 15008 && tcp.len > 0"))
    check(tunnelled > 2, "the client's traffic did not go through the mesh")
    check(not seen.tshark(f"ip.addr == {literal}"), f"something still went to {literal}")
    check(not seen.contains(ORDER.encode()), "the order is readable on the wire")
    check(not _reaches(world.outsider, literal), f"a host outside the mesh can connect to {literal}")
    world.tell.note(f"outsider: no connection to {literal}:{PORT}")
    result.detail = f"{literal}:{PORT} is served by db over mutual TLS for hosts of the mesh; outside it is dead"


def _ask(world: World, config: Path, tell: bool = True) -> str:
    """What the client with the literal gets: the order, and which machine answered."""
    query = "select concat(text, ' from ', @@hostname) from orders"
    argv = ["mariadb", f"--defaults-file={config}", "app", "-N", "-e", query]
    return world.run(world.web, *argv) if tell else world.web.run(argv).stdout.strip()


def _move(world: World) -> None:
    """The data goes to db, the old machine goes away."""
    old, new = world.databases["olddb"], world.databases["db"]
    dump = world.olddb.run(["mariadb-dump", f"--socket={old.directory}/mariadb.sock", "-uapp", "-papp", "app"]).stdout
    world.db.run(["mariadb", f"--socket={new.directory}/mariadb.sock", "-uapp", "-papp", "app"], input=dump)
    world.tell.note(f"{len(dump)} bytes of orders moved from olddb to db")
    world.lab.remove(world.olddb)


def _claim(world: World) -> None:
    addresses = ", ".join(f'"{address}"' for address in (*world.olddb.addresses, *world.db.addresses))
    text = _CLAIM.format(addresses=addresses)
    path = world.hub.private / "orders-db.yaml"
    path.write_text(text)
    for line in text.splitlines():
        world.tell.note(f"  {line}")
    world.meshagent(world.hub, "hub", "apply", "-f", str(path))


def _reaches(host: Host, address: str) -> bool:
    """True when a connection to the database port there can be made within 1.5 s."""
    try:
        host.connect(address, PORT, timeout=1.5).close()
    except (OSError, MeshagentError):
        return False
    return True
