"""What makes this host this host, on disk: the enrolment, the host key, and the workload set.

Key, chain and bundle are one state file, so that they can only change together: a crash leaves the old set or the new
one. Nothing here is ever set aside or replaced by a default: a damaged identity is an error that a person must see.
Files are 0600 in a directory 0700, owner root. ``cryptography`` (50 ms of modules) is imported where a key is read.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshagent.machine import files, state
from meshagent.model.address import HostPort, parse_host_port
from meshagent.model.errors import MeshagentError, NotEnrolledError, UsageError
from meshagent.model.identity import Identity, SpiffeId

if TYPE_CHECKING:
    from meshagent.agent.identity.keys import HostKey

FORMAT = 1

ENROLMENT = "enrolment.json"
HOST_KEY = "host.key"
WORKLOAD = "workload.json"

_MAX_KEY = 16 << 10


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What a host learned when it joined. ``root_pin`` is the token's: SHA-256 over the root's SPKI, base32."""

    host_name: str
    namespace: str
    service_account: str
    trust_domain: str
    zone: str
    hub_addresses: tuple[HostPort, ...]
    server_name: str
    root_pin: str

    @property
    def spiffe_id(self) -> SpiffeId:
        """The identity of the host's workloads."""
        return SpiffeId(self.trust_domain, self.namespace, self.service_account)


class Keystore:
    """The files below ``directory`` (``Paths.state``). Reading raises ``MeshagentError`` with a hint."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self) -> None:
        """Make the directory, 0700."""
        files.make_dir(self.directory, mode=0o700)

    # --- enrolment

    @property
    def enrolled(self) -> bool:
        """Whether there is an enrolment, good or damaged."""
        return (self.directory / ENROLMENT).exists()

    def save_enrolment(self, enrolment: Enrolment) -> None:
        data = {
            "host_name": enrolment.host_name,
            "namespace": enrolment.namespace,
            "service_account": enrolment.service_account,
            "trust_domain": enrolment.trust_domain,
            "zone": enrolment.zone,
            "hub_addresses": [str(address) for address in enrolment.hub_addresses],
            "server_name": enrolment.server_name,
            "root_pin": enrolment.root_pin,
        }
        state.write_state(self.directory / ENROLMENT, data, format=FORMAT)

    def load_enrolment(self) -> Enrolment:
        """Raises ``NotEnrolledError`` where there is none, ``MeshagentError`` ``enrolment-damaged``."""
        data = self._read(ENROLMENT, "enrolment-damaged")
        if data is None:
            raise NotEnrolledError(str(self.directory))
        try:
            addresses = tuple(parse_host_port(text) for text in data["hub_addresses"])
            names = ("host_name", "namespace", "service_account", "trust_domain", "zone", "server_name", "root_pin")
            found = Enrolment(hub_addresses=addresses, **{name: _text(data[name]) for name in names})
            assert found.spiffe_id  # raises when the parts make no identity
        except (KeyError, TypeError, UsageError) as error:
            raise _damaged(
                "enrolment-damaged", f"{self.directory / ENROLMENT} lacks what an enrolment holds"
            ) from error
        return found

    # --- the host key

    def save_host_key(self, key: "HostKey") -> None:
        files.write_atomic(self.directory / HOST_KEY, key.private_pem(), mode=0o600)

    def load_host_key(self) -> "HostKey | None":
        """None when there is none yet; raises ``MeshagentError`` ``host-key-damaged``."""
        from meshagent.agent.identity.keys import load_host_key

        pem = files.read_bounded(self.directory / HOST_KEY, _MAX_KEY)
        return load_host_key(pem) if pem is not None else None

    # --- key, chain and bundle

    @property
    def has_identity(self) -> bool:
        """Whether there is a set, good or damaged."""
        return (self.directory / WORKLOAD).exists()

    def save_identity(self, identity: Identity) -> None:
        """Switch to this set, as one."""
        data = {
            "key": identity.key_pem.decode("ascii"),
            "chain": identity.chain_pem,
            "bundle": identity.bundle_pem,
        }
        state.write_state(self.directory / WORKLOAD, data, format=FORMAT)

    def load_identity(self) -> Identity | None:
        """None when there is none yet; an expired one is returned. Raises ``MeshagentError`` ``identity-damaged``."""
        from meshagent.agent.identity.svid import identity_from_set

        data = self._read(WORKLOAD, "identity-damaged")
        if data is None:
            return None
        try:
            key, chain, bundle = (_text(data[name]) for name in ("key", "chain", "bundle"))
        except (KeyError, TypeError) as error:
            raise _damaged("identity-damaged", f"{self.directory / WORKLOAD} lacks key, chain or bundle") from error
        return identity_from_set(key.encode("ascii", "replace"), chain, bundle)

    # --- the end

    def wipe(self) -> None:
        """Overwrite and remove all of it; the enrolment last, so that an interrupted ``leave`` can be repeated."""
        for name in (WORKLOAD, HOST_KEY, ENROLMENT):
            files.wipe(self.directory / name)
            with contextlib.suppress(OSError):
                (self.directory / f".{name}.new").unlink()

    def _read(self, name: str, code: str) -> dict[str, Any] | None:
        found = state.read_state(self.directory / name, format=FORMAT, precious=True)
        if found.problem:
            raise _damaged(code, found.problem)
        return found.data


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _damaged(code: str, message: str) -> MeshagentError:
    return MeshagentError(code, message, hint="restore it from a backup, or `meshagent leave` and enrol again")
