"""Everything that can be wrong when a host joins: one line, a hint, exit 1, the host as it was; then it can join."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.lab import Host, Lab, wait_until
from meshagent.lab.capture import Capture
from meshagent.lab.snapshot import diff
from meshagent.lab.waiting import NotInTimeError
from tests.lab.clocks import wrong_clock

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("enroll")]


class World:
    """Two hubs of two meshes, and a host that is in none."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.hub, self.other, self.host = lab.host("hub"), lab.host("other"), lab.host("host")
        for hub in (self.hub, self.other):
            hub.start_meshagent("hub", "run")
            wait_until(lambda hub=hub: hub.meshagent_json("hub", "hosts"), what="the hub")
        self.before = self.host.snapshot()

    def token(self, *options: str, hub: Host | None = None) -> str:
        made = ["hub", "token", "create", "--service-account", "sa", *options]
        return str((hub or self.hub).meshagent_json(*made)["token"])

    def enrol(
        self, token: str, *options: str, hub: Host | None = None, env: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Exit code and stderr."""
        address = f"{(hub or self.hub).address}:15012"
        done = self.host.meshagent("enroll", address, token, *options, check=False, env=env)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    def refused(self, said: str, code: int, stderr: str) -> None:
        """One line that says ``said``, a hint, and nothing left that ``leave`` doesn't take away."""
        lines = stderr.splitlines()
        assert (code, len(lines), lines[1][:6]) == (1, 2, "hint: "), stderr
        assert said in lines[0]
        assert not (self.host.root / "var/lib/meshagent/enrolment.json").exists()
        self.leave()

    def leave(self) -> None:
        self.host.meshagent("leave", "--purge")
        with contextlib.suppress(NotInTimeError):
            wait_until(lambda: not diff(self.before, self.host.snapshot()), timeout=3)
        assert diff(self.before, self.host.snapshot()) == []


@pytest.fixture(scope="module")
def world(envoy: Path) -> Iterator[World]:
    with Lab(families=(4,)) as lab:
        yield World(lab)


# --- tokens


def test_a_used_token_is_refused_to_another_host_key(world: World) -> None:
    token = world.token()
    assert world.enrol(token)[0] == 0
    world.leave()
    world.refused("is used up", *world.enrol(token))


def test_a_revoked_token_is_refused(world: World) -> None:
    token = world.token()
    world.hub.meshagent("hub", "token", "revoke", token.split(".")[2])
    world.refused("was revoked", *world.enrol(token))


def test_an_expired_token_is_refused(world: World) -> None:
    token = world.token("--ttl", "1s")
    wait_until(lambda: world.hub.meshagent_json("hub", "token", "list")["tokens"][-1], what="tokens")
    wait_until(lambda: _state(world, token) == "expired", what="the token's end")
    world.refused("expired at", *world.enrol(token))


def _state(world: World, token: str) -> str:
    rows = world.hub.meshagent_json("hub", "token", "list")["tokens"]
    return str(next(row["state"] for row in rows if row["id"] == token.split(".")[2]))


def test_a_token_with_a_wrong_secret_is_not_known(world: World) -> None:
    token = world.token()
    wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
    world.refused("does not know this token", *world.enrol(wrong))


def test_a_token_for_another_host_is_refused(world: World) -> None:
    world.refused("is for host elsewhere", *world.enrol(world.token("--host", "elsewhere")))


def test_a_token_for_other_addresses_is_refused(world: World) -> None:
    world.refused("is not for hosts at", *world.enrol(world.token("--cidr", "192.0.2.0/24")))


def test_every_refusal_is_in_the_hubs_audit(world: World) -> None:
    world.refused("is for host elsewhere", *world.enrol(world.token("--host", "elsewhere")))
    newest = world.hub.meshagent_json("hub", "audit", "--limit", "1")["audit"][0]
    assert (newest["action"], newest["outcome"], newest["source"]) == ("enroll", "token-other-host", world.host.address)


# --- the hub


def test_a_hub_with_another_ca_gets_nothing_of_the_token(world: World) -> None:
    token = world.token()
    secret = token.rsplit(".", 1)[1]
    with world.host.capture(f"host {world.other.address}") as seen:
        code, stderr = world.enrol(token, hub=world.other)
    world.refused("its CA is not the one pinned in the token; nothing was sent", code, stderr)
    assert len(seen.packets()) > 5
    assert not any(part.encode() in packet for packet in seen.packets() for part in (secret, token.split(".")[2]))
    records = client_records(seen, world.host.address)
    assert {kind for kind, _ in records} <= {HANDSHAKE, CHANGE_CIPHER_SPEC, ALERT, APPLICATION_DATA}
    assert [kind for kind, _ in records].count(HANDSHAKE) == 1, "a ClientHello"
    # In TLS 1.3 "no certificate" (25 bytes) and Finished (69) look like that, too: no room for a token besides.
    encrypted = sum(length for kind, length in records if kind == APPLICATION_DATA)
    assert 0 < encrypted < 100 < len(token), records
    assert world.other.meshagent_json("hub", "audit")["audit"] == []


CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23


def client_records(seen: Capture, client: str) -> list[tuple[int, int]]:
    """Type and length of every TLS record that ``client`` sent, in order (RFC 8446 section 5.1)."""
    sent = f"ip.src == {client} && tcp.len > 0 && !tcp.analysis.retransmission"
    streams: dict[str, bytes] = {}
    for stream, payload in seen.tshark(sent, "tcp.stream", "tcp.payload"):
        streams[stream] = streams.get(stream, b"") + bytes.fromhex(payload.replace(":", ""))
    found: list[tuple[int, int]] = []
    for data in streams.values():
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at + 3 : at + 5], "big")
            assert data[at + 1] == 3 and len(data) >= at + 5 + length, "not a whole TLS record"
            found.append((data[at], length))
            at += 5 + length
    return found


def test_a_hub_that_refuses_the_connection_is_named_at_once(world: World) -> None:
    done = world.host.meshagent("enroll", f"{world.hub.address}:15999", world.token(), check=False)
    world.refused("cannot be reached: Connection refused", done.returncode, done.stderr)


def test_a_hub_that_never_answers_is_given_up_in_time(world: World) -> None:
    with world.hub.listen(15998) as silent:
        done = world.host.meshagent("enroll", f"{world.hub.address}:15998", world.token(), check=False, timeout=30)
        assert silent.fileno() > 0
    world.refused("does not answer the TLS handshake in time", done.returncode, done.stderr)


def test_something_else_on_the_hubs_port_is_said_so(world: World) -> None:
    server = world.hub.listen(15997)
    program = world.hub.popen(["socat", "TCP-LISTEN:15996,reuseaddr,fork", "SYSTEM:echo SSH-2.0-x"], log="socat")
    wait_until(lambda: world.hub.connect(world.hub.address, 15996).close() is None, what="socat")
    done = world.host.meshagent("enroll", f"{world.hub.address}:15996", world.token(), check=False)
    program.kill()
    server.close()
    world.refused("does not speak TLS as a hub does", done.returncode, done.stderr)


# --- the host


def test_the_same_name_twice_is_refused_and_its_holder_undisturbed(world: World) -> None:
    world.other.meshagent("enroll", f"{world.hub.address}:15012", world.token(), "--name", "taken")
    try:
        world.refused("another host is enrolled as taken", *world.enrol(world.token(), "--name", "taken"))
    finally:
        world.other.meshagent("leave")


def test_enrolling_twice_changes_nothing_and_another_hub_needs_leave_first(world: World) -> None:
    assert world.enrol(world.token())[0] == 0
    key = (world.host.root / "var/lib/meshagent/workload.json").read_bytes()
    assert world.enrol("ma1.anything")[0] == 0
    code, stderr = world.enrol(world.token(hub=world.other), hub=world.other)
    assert (code, "already in the mesh" in stderr) == (1, True)
    assert (world.host.root / "var/lib/meshagent/workload.json").read_bytes() == key
    world.leave()


def test_without_libnftables_and_iptables_there_is_nothing_to_capture_with(world: World) -> None:
    programs = ["/usr/sbin/xtables-legacy-multi"]
    libraries = world.host.run(["sh", "-c", "ls /usr/lib/*/libnftables.so.1"]).stdout.split()
    argv = " ".join(world.host.meshagent_argv("enroll", f"{world.hub.address}:15012", world.token()))
    hide = "; ".join(f"mount --bind /dev/null {library}" for library in [*libraries, *programs])
    done = world.host.run(["unshare", "--mount", "sh", "-c", f"{hide}; exec {argv}"], check=False)
    world.refused("nothing to capture with", done.returncode, done.stderr)


@pytest.mark.parametrize("pages", [1, 2, 3])
def test_a_full_disk_is_named_and_space_is_all_that_it_takes(world: World, pages: int) -> None:
    root = "/run/small"
    world.host.run(["mkdir", root])
    world.host.run(["mount", "-t", "tmpfs", "-o", f"size={pages * 4}k", "tmpfs", root])
    try:
        address, token = f"{world.hub.address}:15012", world.token()
        done = world.host.meshagent("--root", root, "enroll", address, token, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 2), done.stderr
        assert "No space left on device" in done.stderr
        world.host.run(["mount", "-o", "remount,size=1m", root])
        world.host.meshagent("--root", root, "enroll", address, token)
        world.host.meshagent("--root", root, "leave", "--purge")
        assert world.host.run(["find", root, "-mindepth", "1"]).stdout == ""
    finally:
        world.host.run(["umount", root])
        world.host.run(["rmdir", root])
    world.leave()


def test_a_read_only_disk_is_named_and_the_token_not_spent(world: World) -> None:
    root = "/run/fixed"
    world.host.run(["mkdir", root])
    world.host.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", root])
    try:
        token = world.token()
        done = world.host.meshagent("--root", root, "enroll", f"{world.hub.address}:15012", token, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 2), done.stderr
        assert "Read-only file system" in done.stderr
        assert _state(world, token) == "valid"
    finally:
        world.host.run(["umount", root])
        world.host.run(["rmdir", root])


@pytest.mark.parametrize("offset", ["+1d", "-1d"])
def test_a_clock_off_by_a_day_is_named_and_the_token_not_spent(world: World, offset: str) -> None:
    token = world.token()
    code, stderr = world.enrol(token, env=wrong_clock(offset))
    world.refused("this host's clock", code, stderr)
    assert "clock" in stderr.splitlines()[1]
    assert _state(world, token) == "valid"
    assert "host" not in [row["name"] for row in world.hub.meshagent_json("hub", "hosts")["hosts"]]
    assert world.enrol(token)[0] == 0
    world.leave()


# --- leaving


def test_leaving_twice_or_without_ever_joining_is_fine(world: World) -> None:
    world.leave()
    assert world.enrol(world.token())[0] == 0
    world.leave()
    world.leave()


def test_without_a_daemon_leave_tells_the_hub_itself_and_the_name_is_free_at_once(world: World) -> None:
    for _ in range(2):
        assert world.enrol(world.token(), "--name", "again")[0] == 0
        answer = world.host.meshagent_json("leave", "--purge")
        assert answer["warnings"] == []
    assert not [h for h in world.hub.meshagent_json("hub", "hosts")["hosts"] if h["name"] == "again"]


def test_with_the_hub_away_leave_completes_here_and_says_what_is_left_to_do(world: World) -> None:
    assert world.enrol(world.token(), "--name", "orphan")[0] == 0
    world.host.run(["ip", "route", "add", "blackhole", f"{world.hub.address}/32"])
    answer = world.host.meshagent_json("leave", "--purge")
    world.host.run(["ip", "route", "del", "blackhole", f"{world.hub.address}/32"])
    assert answer["warnings"] == ["the hub could not be told; on the hub run: meshagent hub host revoke orphan"]
    world.hub.meshagent("hub", "host", "revoke", "orphan")
    world.leave()
