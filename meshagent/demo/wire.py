"""Step ``retrofit``: the same traffic before and after, seen on the wire by the same capture."""

import sys

from meshagent.demo.narrator import StepResult, check
from meshagent.demo.world import PAYLOAD, World
from meshagent.lab.capture import Capture

CACHE = "cache.default.mesh.internal"
WEB = "web.default.mesh.internal"
ROUNDS = 40

#: Content type 23, legacy version 1.2 (RFC 8446 section 5.1), as tshark prints payload.
TLS_APPLICATION_DATA = "170303"


def see_plain_text(world: World) -> None:
    """Before: the web host talks to Redis by address, and anybody on the wire reads along."""
    with _watch(world) as seen:
        _traffic(world, world.cache.address)
    world.plain_packets = len(seen.packets())
    check(seen.contains(PAYLOAD.encode()), "the capture did not see the payload before enrolment")
    world.tell.note(f"before: {world.plain_packets} packets between web and cache, the payload readable on the wire")


def retrofit(world: World, result: StepResult) -> None:
    """After: by name, the same commands, mutual TLS; the caller's SPIFFE ID comes out of the TLS session."""
    with _watch(world) as seen:
        _traffic(world, CACHE)
    packets = seen.packets()
    check(len(packets) > 20, f"the capture saw only {len(packets)} packets: the traffic went another way")
    check(not seen.contains(PAYLOAD.encode()), "the payload is still readable on the wire")
    records = [row[0] for row in seen.tshark("tcp.port == 15008 && tcp.len > 0", "tcp.payload")]
    encrypted = [payload for payload in records if payload.startswith(TLS_APPLICATION_DATA)]
    check(len(encrypted) > 20, f"only {len(encrypted)} packets on port 15008 carry TLS application data")
    server = peer_identity(world)
    check(server.endswith("/ns/default/sa/cache"), f"the TLS session with cache showed {server!r}")
    caller = _identity_seen_by_application(world)
    result.detail = f"{len(packets)} packets, none with the payload; peer {server}, caller {caller}"


def _watch(world: World) -> Capture:
    return world.cache.capture(f"host {world.web.address} and tcp")


def _traffic(world: World, target: str) -> None:
    world.run(world.web, "redis-cli", "-h", target, "set", "order:1", PAYLOAD)
    answer = world.run(world.web, "redis-cli", "-h", target, "get", "order:1")
    check(answer == PAYLOAD, f"Redis at {target} answered {answer!r}")
    world.run(world.web, "redis-cli", "-h", target, "-r", str(ROUNDS), "get", "order:1")


def peer_identity(world: World) -> str:
    """The SPIFFE ID that cache's port 15008 proves in a TLS session made with web's identity."""
    probe = [sys.executable, "-m", "meshagent.demo.tls_probe", str(world.web.root), world.cache.address]
    return world.web.run(probe).stdout.strip()


def _identity_seen_by_application(world: World) -> str:
    """nginx on web repeats what Envoy read from the session of the caller (cache), and the caller's own address."""
    answer = world.run(world.cache, "curl", "-sS", "--max-time", "5", f"http://{WEB}/who")
    address, _, identity = answer.partition(" ")
    check(address == world.cache.address, f"nginx saw the caller as {address}, not {world.cache.address}")
    callers = [part.removeprefix("URI=") for part in identity.split(";") if part.startswith("URI=")]
    check(len(callers) == 1, f"nginx saw not one identity of its caller: {answer!r}")
    return callers[0]
