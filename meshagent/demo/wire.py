"""Step ``retrofit``: the same traffic before and after, seen on the wire by the same capture."""

import json

from meshagent.demo.narrator import StepResult, check
from meshagent.demo.world import PAYLOAD, World
from meshagent.lab.capture import Capture

CACHE = "cache.default.mesh.internal"
WEB = "web.default.mesh.internal"
ROUNDS = 40


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
    tls = seen.tshark("tls.record.content_type == 23", "tcp.dstport")
    check(len(tls) > 10, f"only {len(tls)} packets carry TLS application data")
    check({"15008"} & {row[0] for row in tls}, f"no TLS towards port 15008: {tls[:3]}")
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
    """The URI SAN of the certificate that cache's port 15008 shows in a TLS session made with web's identity."""
    held = world.web.meshagent_json("certs")
    code = (
        "import json, socket, ssl, sys\n"
        "from cryptography import x509\n"
        "from meshagent.agent.identity.keystore import Keystore\n"
        "from meshagent.model.paths import Paths\n"
        "from pathlib import Path\n"
        "root, address, bundle = sys.argv[1:]\n"
        "context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)\n"
        "context.check_hostname = False\n"
        "context.set_alpn_protocols(['h2'])\n"
        "context.load_verify_locations(cadata=json.loads(bundle))\n"
        "identity = Keystore(Paths(Path(root))).load_identity()\n"
        "import tempfile, os\n"
        "with tempfile.NamedTemporaryFile() as file:\n"
        "    file.write(identity.key_pem + identity.chain_pem.encode()); file.flush()\n"
        "    context.load_cert_chain(file.name)\n"
        "with socket.create_connection((address, 15008), 5) as raw, context.wrap_socket(raw) as tls:\n"
        "    names = x509.load_der_x509_certificate(tls.getpeercert(True)).extensions\n"
        "    print(names.get_extension_for_class(x509.SubjectAlternativeName)"
        ".value.get_values_for_type(x509.UniformResourceIdentifier)[0])\n"
    )
    bundle = json.dumps("".join(held["bundle"]))
    return world.web.python(code, str(world.web.root), world.cache.address, bundle).strip()


def _identity_seen_by_application(world: World) -> str:
    """nginx on web repeats what Envoy read from the session of the caller (cache), and the caller's own address."""
    answer = world.run(world.cache, "curl", "-sS", "--max-time", "5", f"http://{WEB}/who")
    address, _, identity = answer.partition(" ")
    check("spiffe://" in identity, f"nginx saw no identity of its caller: {answer!r}")
    check(address == world.cache.address, f"nginx saw the caller as {address}, not {world.cache.address}")
    check(identity.count("spiffe://") == 1, f"more than one identity in {identity!r}")
    return identity.removeprefix("URI=")
