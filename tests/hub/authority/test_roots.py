"""The CA is made once and found again; what is missing is said."""

import stat
from pathlib import Path

import pytest

from meshagent.hub.authority.roots import open_roots
from meshagent.hub.store.sqlite import open_store
from meshagent.model.errors import MeshagentError
from tests.hub.hosts import NOW, on_loop


@on_loop
async def test_the_ca_is_the_same_after_a_restart_and_its_key_is_private(tmp_path: Path) -> None:
    pins = []
    for _ in range(2):
        store = await open_store(tmp_path / "hub.db")
        pins.append((await open_roots(store, tmp_path / "ca", "mesh.internal", NOW)).ca_hash)
        await store.close()
    assert pins[0] == pins[1]
    (key,) = (tmp_path / "ca").glob("*.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert b"PRIVATE" not in (tmp_path / "hub.db").read_bytes()


@pytest.mark.parametrize(("content", "code"), [(None, "ca-key-missing"), (b"torn", "ca-key-missing")])
@on_loop
async def test_a_missing_or_torn_key_is_said_and_no_second_ca_is_made(
    tmp_path: Path, content: bytes | None, code: str
) -> None:
    store = await open_store(tmp_path / "hub.db")
    await open_roots(store, tmp_path / "ca", "mesh.internal", NOW)
    (key,) = (tmp_path / "ca").glob("*.key")
    key.unlink() if content is None else key.write_bytes(content)
    with pytest.raises(MeshagentError) as caught:
        await open_roots(store, tmp_path / "ca", "mesh.internal", NOW)
    assert caught.value.code == code
    await store.close()


@pytest.mark.parametrize("loss", ["gone", "empty"])
@on_loop
async def test_a_database_that_was_lost_never_becomes_a_second_ca(tmp_path: Path, loss: str) -> None:
    store = await open_store(tmp_path / "hub.db")
    first = await open_roots(store, tmp_path / "ca", "mesh.internal", NOW)
    await store.close()
    kept = (tmp_path / "hub.db").read_bytes()
    (tmp_path / "hub.db").unlink()  # closed in order: nothing else is left of it
    if loss == "empty":
        (tmp_path / "hub.db").touch()
    store = await open_store(tmp_path / "hub.db")
    with pytest.raises(MeshagentError) as caught:
        await open_roots(store, tmp_path / "ca", "mesh.internal", NOW)
    assert caught.value.code == "store-lost" and "hub restore" in caught.value.hint
    await store.close()
    (tmp_path / "hub.db").write_bytes(kept)
    store = await open_store(tmp_path / "hub.db")
    assert (await open_roots(store, tmp_path / "ca", "mesh.internal", NOW)).ca_hash == first.ca_hash
    await store.close()
