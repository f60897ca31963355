"""Into the mesh: the token pins the hub, keys are born here, one call trades the token for an identity.

Every step can be interrupted and repeated: the host key is kept from the first try on, so that the hub takes a second
try for the same use of the token, and ``enrolment.json`` is written last: only then is the host enrolled.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from meshagent import __version__
from meshagent.agent import footprint as footprints
from meshagent.agent import ports
from meshagent.agent.capture.usable import usable_backends
from meshagent.agent.footprint import PROXY_USER
from meshagent.agent.guarding import INSTALL_NFT
from meshagent.agent.identity.keys import HostKey, build_csr, generate_host_key, generate_workload_key
from meshagent.agent.identity.keystore import Enrolment, Keystore
from meshagent.agent.identity.svid import identity_from_answer
from meshagent.config.edit import set_posture
from meshagent.machine import facts as machine_facts
from meshagent.machine import netlink, state, users
from meshagent.machine.facts import Facts
from meshagent.machine.users import require_root
from meshagent.model.address import HostPort, IPAddress, parse_ip
from meshagent.model.errors import MeshagentError, UsageError
from meshagent.model.identity import Identity, SpiffeId
from meshagent.model.names import require_label
from meshagent.model.paths import Paths
from meshagent.model.posture import Posture
from meshagent.protocol.enrol import Token, parse_token
from meshagent.protocol.signing import enrolment_transcript
from meshagent.transport.tls import PinnedHub, look_at_hub

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the person asked for; empty ``name`` and ``posture`` mean the defaults. ``confirm`` in seconds, 0 none."""

    hub: HostPort
    token: str = field(repr=False)
    name: str = ""
    posture: str = ""
    confirm: int = 0
    start: bool = True


async def enroll_host(paths: Paths, wish: Wish, progress: Progress) -> dict[str, Any]:
    """Join; returns what the summary needs. Raises ``MeshagentError``; then nothing but a repeatable start is left."""
    require_root("enrolling")
    keystore = Keystore(paths.state)
    if keystore.enrolled:
        return _already(keystore, wish)
    here = machine_facts.gather()
    _require_backend(here)
    account_before = users.find_user(PROXY_USER)
    ports.require_free(frozenset({account_before.uid} if account_before else ()))
    token = _parse(wish.token)
    name = require_label(wish.name or short_host_name(), "host name")
    progress(f"looking at the hub at {wish.hub}")
    hub = await look_at_hub(wish.hub, token.ca_hash)
    record = footprints.begin(paths, account_before is not None, paths.config.exists())
    host_key = _host_key(keystore)
    progress("asking the hub for an identity")
    enrolment, identity = await _trade(wish.hub, hub, token, name, host_key, here)
    account = users.ensure_user(PROXY_USER)
    footprints.with_account(paths, record, account.uid, account.gid)
    _configure(paths, wish)
    keystore.save_identity(identity)
    keystore.save_enrolment(enrolment)
    return _summary(enrolment, identity, fresh=True)


def short_host_name() -> str:
    """This host's name without its domain, in lower case."""
    return socket.gethostname().partition(".")[0].lower()


def _already(keystore: Keystore, wish: Wish) -> dict[str, Any]:
    enrolment, identity = keystore.load_enrolment(), keystore.load_identity()
    if identity is None:
        raise MeshagentError(
            "identity-damaged",
            "this host is enrolled but its certificate is gone",
            hint="meshagent leave, then enrol again",
        )
    if wish.hub not in enrolment.hub_addresses:
        known = ", ".join(str(address) for address in enrolment.hub_addresses)
        raise MeshagentError(
            "already-enrolled",
            f"this host is already in the mesh of {known}",
            hint="leave it first: meshagent leave",
        )
    return _summary(enrolment, identity, fresh=False)


def _require_backend(here: Facts) -> None:
    if not here.nft and not any(usable_backends()):
        raise MeshagentError(
            "no-nftables",
            "there is nothing to capture with: neither libnftables.so.1 nor legacy iptables can be used here",
            hint=INSTALL_NFT,
        )


def _parse(text: str) -> Token:
    """A bad token is a failure (1), not wrong usage (2): scripts tell a typo in the command from a dead token."""
    try:
        return parse_token(text)
    except UsageError as error:
        raise MeshagentError(error.code, error.message, hint=error.hint) from None


def _host_key(keystore: Keystore) -> HostKey:
    key = keystore.load_host_key()
    if key is None:
        key = generate_host_key()
        keystore.save_host_key(key)
    return key


async def _trade(
    address: HostPort, hub: PinnedHub, token: Token, name: str, host_key: HostKey, here: Facts
) -> tuple[Enrolment, Identity]:
    """Token and CSR out, identity in; believed only after the host's own checks."""
    from meshagent.protocol.pb.meshagent_v1_pb2 import EnrollRequest  # protobuf: only where it is needed
    from meshagent.transport.channel import enroll_call, hub_channel

    workload_key = await asyncio.to_thread(generate_workload_key)
    csr = build_csr(workload_key, None)
    signed = enrolment_transcript(
        ca_hash=token.ca_hash, token_id=token.id, csr_pem=csr, host_key_pem=host_key.public_pem
    )
    request = EnrollRequest(
        token_id=token.id,
        token_secret=token.secret,
        host_name=name,
        csr_pem=csr,
        host_key_pem=host_key.public_pem,
        host_key_signature=host_key.sign(signed),
        addresses=[str(ip) for ip in own_addresses(address)],
        unix_ms=int(time.time() * 1000),
        boot_id=here.boot_id,
        agent_version=__version__,
    )
    channel = hub_channel(address, roots_pem=hub.root_pem, server_name=hub.server_name)
    try:
        answer = await enroll_call(channel, request)
    finally:
        await channel.close(grace=None)
    spiffe_id = SpiffeId(answer.trust_domain, answer.namespace, answer.service_account)
    if answer.trust_domain != hub.trust_domain:
        raise MeshagentError("hub-bad-answer", f"the hub of {hub.trust_domain} answered for {answer.trust_domain}")
    hub_now = datetime.fromtimestamp(answer.unix_ms / 1000, UTC)
    identity = identity_from_answer(answer.cert_chain, workload_key, spiffe_id, hub_now, trusted_bundle=hub.root_pem)
    enrolment = Enrolment(
        host_name=answer.host_name,
        namespace=answer.namespace,
        service_account=answer.service_account,
        trust_domain=answer.trust_domain,
        zone=answer.zone,
        hub_addresses=(address,),
        server_name=hub.server_name,
        root_pin=token.ca_hash,
    )
    return enrolment, identity


def own_addresses(hub: HostPort) -> list[IPAddress]:
    """This host's addresses, the one it uses towards the hub first. May wait for a name to resolve."""
    known = [address.ip for address in netlink.addresses()]
    target = parse_ip(hub.host) or _resolved(hub)
    preferred = netlink.preferred_source(target) if target else None
    return sorted(dict.fromkeys(known), key=lambda ip: ip != preferred)


def _resolved(hub: HostPort) -> IPAddress | None:
    try:
        return parse_ip(str(socket.getaddrinfo(hub.host, hub.port, type=socket.SOCK_STREAM)[0][4][0]))
    except (OSError, IndexError, UnicodeError):
        return None


def _configure(paths: Paths, wish: Wish) -> None:
    if wish.posture:
        set_posture(paths.config, Posture(wish.posture))
    if wish.confirm:
        state.write_state(paths.pending, {"seconds": wish.confirm})


def _summary(enrolment: Enrolment, identity: Identity, *, fresh: bool) -> dict[str, Any]:
    return {
        "host": enrolment.host_name,
        "spiffe_id": str(identity.spiffe_id),
        "not_after": identity.not_after.isoformat().replace("+00:00", "Z"),
        "fresh": fresh,
    }
