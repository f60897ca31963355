"""Tokens: wrong wishes are named, secrets don't show."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from meshagent.hub.authority.tokens import TokenAsk, new_token, revoke
from meshagent.hub.store.sqlite import open_store
from meshagent.model.errors import UsageError
from meshagent.protocol.enrol import parse_token, secret_hash
from tests.hub.hosts import NOW, on_loop


def test_the_row_knows_the_secret_only_by_its_hash_and_nothing_shows_it() -> None:
    row, token = new_token(TokenAsk("web", cidrs=("10.0.0.1/8",)), "a" * 52, "mesh.internal", NOW)
    assert row.secret_sha256 == secret_hash(token.secret) and token.secret not in repr((row, token))
    assert parse_token(token.reveal()) == token
    assert row.cidrs == ("10.0.0.0/8",) and row.expires == NOW + timedelta(hours=1)


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"namespace": "Bad Name"}, "bad-name"),
        ({"service_account": "a/b"}, "bad-identity"),
        ({"uses": 0}, "bad-uses"),
        ({"ttl": timedelta(0)}, "bad-ttl"),
        ({"ttl": timedelta(days=4000)}, "bad-ttl"),
        ({"host": "a b"}, "bad-name"),
        ({"cidrs": ("10.0.0.0/99",)}, "bad-cidr"),
        ({"services": ("a.b",)}, "bad-name"),
    ],
)
def test_a_wrong_wish_is_refused_by_name(wish: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        new_token(replace(TokenAsk("web"), **wish), "a" * 52, "mesh.internal", NOW)
    assert caught.value.code == code


@on_loop
async def test_revoking_twice_keeps_the_first_moment(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "hub.db")
    row, _ = new_token(TokenAsk("web"), "a" * 52, "mesh.internal", NOW)
    await store.transact(lambda tx: tx.put_token(row))
    assert await store.transact(lambda tx: revoke(tx, row.id, NOW))
    assert await store.transact(lambda tx: revoke(tx, row.id, NOW + timedelta(hours=1)))
    assert not await store.transact(lambda tx: revoke(tx, "unknown", NOW))
    kept = await store.transact(lambda tx: tx.token(row.id))
    assert kept is not None and kept.revoked == NOW
    await store.close()
