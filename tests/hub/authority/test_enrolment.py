"""Enrolment as a transaction on a real database: races, retries, take-overs."""

import asyncio
import hashlib
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from meshagent.hub.authority.enrolment import HostFacts, Issued, Signer, caller, end_host, enrol, renew
from meshagent.hub.authority.issue import RefusedCsr, make_root
from meshagent.hub.authority.policy import EnrolmentAsk, Refusal
from meshagent.hub.authority.roots import TrustRoots
from meshagent.hub.authority.tokens import TokenAsk, new_token
from meshagent.hub.store.rows import HostStatus
from meshagent.hub.store.sqlite import SqliteStore, open_store
from meshagent.protocol.enrol import Token, secret_hash
from tests.hub.hosts import NOW, csr_pem, on_loop

ROOT = make_root("mesh.internal", NOW)
SIGNER = Signer(TrustRoots(ROOT, ROOT.pem), "mesh.internal")
HASH = SIGNER.roots.ca_hash


def key_hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


async def a_token(store: SqliteStore, **options: Any) -> Token:
    row, token = new_token(TokenAsk("web", **options), HASH, "mesh.internal", NOW)
    await store.transact(lambda tx: tx.put_token(row))
    return token


async def join(store: SqliteStore, token: Token, name: str, key: str = "", csr: str = "") -> Issued:
    ask = EnrolmentAsk(token.id, secret_hash(token.secret), name, key_hash(key or name), ip_address("10.0.0.9"))
    facts = HostFacts(csr or csr_pem(), "PEM", ("10.0.0.1",), "boot", "0.1.0")
    return await store.transact(lambda tx: enrol(tx, ask, facts, SIGNER, NOW))


@on_loop
async def test_of_fifty_racing_hosts_exactly_as_many_win_as_there_are_uses(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "hub.db")
    token = await a_token(store, uses=3)
    outcomes = await asyncio.gather(*(join(store, token, f"web-{n}") for n in range(50)), return_exceptions=True)
    assert sum(isinstance(o, Issued) for o in outcomes) == 3
    assert {o.code for o in outcomes if isinstance(o, Refusal)} == {"token-used"}
    assert len(await store.transact(lambda tx: tx.hosts())) == 3
    await store.close()


@on_loop
async def test_one_host_that_tries_ten_times_at_once_is_one_use_and_one_host(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "hub.db")
    token = await a_token(store)
    outcomes = await asyncio.gather(*(join(store, token, "web-1") for _ in range(10)))
    assert {o.host.id for o in outcomes} == {outcomes[0].host.id}
    assert len(await store.transact(lambda tx: tx.token_uses(token.id))) == 1
    serials = await store.transact(lambda tx: [tx.certificate(_serial(o)) for o in outcomes])
    assert all(serials)
    await store.close()


def _serial(issued: Issued) -> str:
    from cryptography import x509

    return f"{x509.load_pem_x509_certificate(issued.chain[0].encode()).serial_number:x}"


@on_loop
async def test_a_bad_request_burns_no_use_and_leaves_no_host(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "hub.db")
    token = await a_token(store)
    with pytest.raises(RefusedCsr):
        await join(store, token, "web-1", csr="nonsense")
    assert await store.transact(lambda tx: (tx.hosts(), tx.token_uses(token.id))) == ((), ())
    await join(store, token, "web-2")
    await store.close()


@on_loop
async def test_a_taken_over_host_may_not_renew_any_more(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "hub.db")
    first = await join(store, await a_token(store), "web-1", key="old")
    second = await join(store, await a_token(store, replace=True), "web-1", key="new")
    assert second.ended is not None and second.ended.id == first.host.id
    with pytest.raises(Refusal) as caught:
        await store.transact(lambda tx: renew(tx, _serial(first), csr_pem(), SIGNER, NOW, timedelta(days=7)))
    assert caught.value.code == "host-replaced"
    assert (await store.transact(lambda tx: caller(tx, _serial(second)))).id == second.host.id
    await store.close()


@on_loop
async def test_a_revoked_name_is_free_and_its_certificates_worthless(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "hub.db")
    first = await join(store, await a_token(store), "web-1")
    assert await store.transact(lambda tx: end_host(tx, "web-1", HostStatus.REVOKED))
    assert await store.transact(lambda tx: end_host(tx, "web-1", HostStatus.REVOKED)) is None
    with pytest.raises(Refusal, match="revoked"):
        await store.transact(lambda tx: caller(tx, _serial(first)))
    await join(store, await a_token(store), "web-1", key="another")
    await store.close()


@on_loop
async def test_an_expired_certificates_record_is_dropped_in_time(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "hub.db")
    first = await join(store, await a_token(store), "web-1")
    later = NOW + timedelta(days=9)
    fresh = await store.transact(lambda tx: renew(tx, _serial(first), csr_pem(), SIGNER, later, timedelta(days=7)))
    assert await store.transact(lambda tx: tx.certificate(_serial(first))) is None
    assert await store.transact(lambda tx: tx.certificate(_serial(fresh)))
    await store.close()
