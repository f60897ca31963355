"""The host's identity on disk."""

import json
from pathlib import Path

import pytest

from meshagent.agent.identity.keys import generate_host_key
from meshagent.agent.identity.keystore import ENROLMENT, HOST_KEY, WORKLOAD, Enrolment, Keystore
from meshagent.model.address import HostPort
from meshagent.model.errors import ExitCode, MeshagentError, NotEnrolledError
from tests.fakes.authority import Authority
from tests.fakes.signed import fresh_identity

ENROLLED = Enrolment(
    host_name="web",
    namespace="default",
    service_account="web",
    trust_domain="mesh.internal",
    zone="mesh.internal",
    hub_addresses=(HostPort("10.0.0.1", 15012), HostPort("2001:db8::1", 15012)),
    server_name="hub.mesh.internal",
    root_pin="abc",
)


@pytest.fixture
def store(tmp_path: Path) -> Keystore:
    made = Keystore(tmp_path / "state")
    made.prepare()
    return made


def test_an_enrolment_a_host_key_and_a_workload_set_come_back_as_they_were_saved(store: Keystore) -> None:
    key, identity = generate_host_key(), fresh_identity(Authority())
    store.save_enrolment(ENROLLED)
    store.save_host_key(key)
    store.save_identity(identity)
    again = Keystore(store.directory)
    assert again.enrolled
    assert again.load_enrolment() == ENROLLED
    loaded = again.load_host_key()
    assert loaded and loaded.public_pem == key.public_pem
    assert again.load_identity() == identity


def test_only_root_can_read_it(store: Keystore) -> None:
    store.save_enrolment(ENROLLED)
    store.save_host_key(generate_host_key())
    store.save_identity(fresh_identity(Authority()))
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in store.directory.iterdir()} == {0o600}


def test_a_host_without_enrolment_says_how_to_enrol(store: Keystore) -> None:
    with pytest.raises(NotEnrolledError) as caught:
        store.load_enrolment()
    assert caught.value.exit_code is ExitCode.NOT_ENROLLED
    assert store.load_identity() is None
    assert store.load_host_key() is None


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_torn_identity_is_an_error_and_stays_where_it_is(store: Keystore, keep: int) -> None:
    store.save_identity(fresh_identity(Authority()))
    file = store.directory / WORKLOAD
    torn = file.read_bytes()[:keep] if keep >= 0 else file.read_bytes().replace(b"MI", b"MJ")
    file.write_bytes(torn)
    with pytest.raises(MeshagentError) as caught:
        store.load_identity()
    assert caught.value.code == "identity-damaged"
    assert "PRIVATE" not in caught.value.message
    assert file.read_bytes() == torn


def test_an_enrolment_that_lacks_something_is_damage_not_a_crash(store: Keystore) -> None:
    store.save_enrolment(ENROLLED)
    file = store.directory / ENROLMENT
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, "data": {}}))
    with pytest.raises(MeshagentError) as caught:
        store.load_enrolment()
    assert caught.value.code == "enrolment-damaged"
    assert store.enrolled


def test_wiping_leaves_nothing_and_can_be_repeated(store: Keystore) -> None:
    store.save_enrolment(ENROLLED)
    store.save_host_key(generate_host_key())
    store.save_identity(fresh_identity(Authority()))
    (store.directory / f".{HOST_KEY}.new").write_bytes(b"left by a kill")
    store.wipe()
    store.wipe()
    assert list(store.directory.iterdir()) == []
    assert not store.enrolled
