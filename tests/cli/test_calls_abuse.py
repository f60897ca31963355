"""Wrong files, garbage on every socket, a revoked host, a drain that ends: the mesh says so and goes on."""

import contextlib
import json
import random
import signal
import socket

import pytest

from meshagent.lab import Host, wait_until
from tests.cli.conftest import Mesh, is_ready

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cli-mesh")]

FIVE_MISTAKES = """\
name: Not_A_Label
port: 70000
protocol: gopher
weight: heavy
colour: blue
"""


def test_a_file_with_five_mistakes_has_all_five_reported_and_the_last_good_stays(mesh: Mesh) -> None:
    file = mesh.db.root / "etc/meshagent/services.d/db.yaml"
    good = file.read_text()
    file.write_text(FIVE_MISTAKES)
    try:
        errors = mesh.db.meshagent_json("service", "list")["errors"]
        assert all(any(word in e for e in errors) for word in ("name", "port", "protocol", "weight", "colour")), errors
        wait_until(lambda: mesh.db.meshagent_json("status", check=False)["conditions"], what="the condition")
        status = mesh.db.meshagent_json("status", check=False)
        text = " ".join(c["text"] for c in status["conditions"])
        assert all(word in text for word in ("name", "port", "protocol", "weight", "colour")), text
        assert [s["name"] for s in status["services"]] == ["db"]
    finally:
        file.write_text(good)
    wait_until(lambda: is_ready(mesh.db), timeout=15, what="db as before")


ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: many{n}, namespace: many}}
spec:
  hosts: [many{n}.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: tcp, protocol: TCP}}]
  endpoints: [{{address: 10.9.0.{last}, serviceAccount: many}}]
"""


def test_a_thousand_documents_are_applied_at_once_or_not_at_all(mesh: Mesh) -> None:
    documents = [ENTRY.format(n=n, last=n % 250) for n in range(1000)]
    spoilt = [*documents[:998], documents[998].replace("hosts:", "hosst:"), documents[999].replace("80", "eighty")]
    done = mesh.hub.meshagent("hub", "apply", "-f", "-", input="---".join(spoilt), check=False)
    assert (done.returncode, "hosst" in done.stderr, "number" in done.stderr) == (2, True, True), done.stderr[:500]
    assert mesh.hub.meshagent_json("hub", "get", "serviceentry", "--namespace", "many")["resources"] == []
    applied = mesh.hub.meshagent("hub", "apply", "-f", "-", "-o", "json", input="---".join(documents))
    assert len(json.loads(applied.stdout)["applied"]) == 1000


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b]\n"


@pytest.mark.parametrize("text", [BOMB, "[" * 5000, "\x00", "kind: ServiceEntry", "a: !!python/object:os.system {}"])
def test_what_is_no_resource_is_refused_with_its_line(mesh: Mesh, text: str) -> None:
    done = mesh.hub.meshagent("hub", "apply", "-f", "-", input=text, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


def test_garbage_on_every_socket_and_port_ends_nothing(mesh: Mesh) -> None:
    run, hub_run = mesh.db.root / "run/meshagent", mesh.hub.root / "run/meshagent-hub"
    before = mesh.db.meshagent_json("status", check=False)["proxy"]
    dice = random.Random(15)
    for garbage in (
        dice.randbytes(3000),
        b"\n" * 100,
        b"{" * 4000 + b"\n",
        b'{"id":[],"method":1}\n',
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        for path in (
            run / "control.sock",
            run / "guard.sock",
            run / "xds.sock",
            run / "sds.sock",
            hub_run / "admin.sock",
        ):
            _throw(socket.AF_UNIX, str(path), garbage)
        for port in (15012, 15080):
            _throw_inside(mesh.hub, port, garbage)
        for port in (15008, 15001, 15020, 15053):
            _throw_inside(mesh.db, port, garbage)
    wait_until(lambda: is_ready(mesh.db), timeout=10, what="db as before")
    after = mesh.db.meshagent_json("status")["proxy"]
    assert (after["pid"], after["restarts"]) == (before["pid"], before["restarts"])
    assert mesh.agent.alive
    assert mesh.hub.meshagent_json("hub", "hosts")["hosts"]
    for host, port in ((mesh.hub, 15080), (mesh.db, 15020)):
        assert host.run(["curl", "-fsS", f"http://127.0.0.1:{port}/healthz/live"]).stdout == "alive\n"


def _throw(family: int, address: object, garbage: bytes) -> None:
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(0.5)
        client.connect(address)  # type: ignore[arg-type]
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        client.recv(4096)


def _throw_inside(host: Host, port: int, garbage: bytes) -> None:
    with contextlib.suppress(OSError), host.connect("127.0.0.1", port, timeout=0.5) as client:
        client.sendall(garbage)
        client.recv(4096)
    with contextlib.suppress(OSError), host.socket(kind=socket.SOCK_DGRAM) as client:
        client.sendto(garbage[:1400], ("127.0.0.1", port))


def test_a_revoked_host_loses_its_streams_at_once(mesh: Mesh) -> None:
    late = mesh.late
    mesh.enrol(late, "--name", "bad")
    agent = late.start_meshagent("run", log="agent-revoked")
    wait_until(lambda: _connected(late), timeout=30, what="the host connected")
    mesh.hub.meshagent("hub", "host", "revoke", "bad")
    wait_until(lambda: not _connected(late), timeout=5, what="its stream closed")
    assert "bad" not in [h["name"] for h in mesh.hub.meshagent_json("hub", "hosts")["hosts"]]
    late.meshagent("leave", "--purge")
    assert agent.wait() == 0


def _connected(host: Host) -> bool:
    status = host.meshagent_json("status", check=False)
    return bool(status and status["control_plane"]["connected"])


def test_leave_ends_a_daemon_that_hangs_and_names_what_the_drain_had_to_close(mesh: Mesh) -> None:
    late = mesh.late
    mesh.enrol(late, "--name", "drained")
    agent = late.start_meshagent("run", log="agent-hung")
    name = "db.default.mesh.internal"
    wait_until(lambda: _pings(late, name), timeout=40, what="redis through the mesh")
    subscriber = late.popen(["redis-cli", "-h", name, "subscribe", "news"])
    wait_until(lambda: "subscribe" in subscriber.text(), what="the subscription")
    direct = late.connect(mesh.db.address, 6379)
    agent.send_signal(signal.SIGSTOP)
    answer = late.meshagent_json("leave", "--drain", "1", "--purge", "--accept", "mesh-in-use")
    assert any("of redis-cli" in line and "port 6379" in line for line in answer["closed"]), answer
    assert agent.wait() != 0
    direct.sendall(b"PING\r\n")
    assert direct.recv(100) == b"+PONG\r\n"
    direct.close()


def _pings(host: Host, name: str) -> bool:
    return host.run(["redis-cli", "-h", name, "ping"], check=False, timeout=5).stdout.strip() == "PONG"
