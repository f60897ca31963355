"""A backup taken from a running hub brings the whole hub back, elsewhere too, and its hosts don't notice."""

import asyncio
import contextlib
import shutil
import stat
from pathlib import Path

import grpc
import grpc.aio
import pytest

from meshagent.hub.archive import is_archive
from meshagent.hub.backup import Place, back_up, restore
from meshagent.model.errors import MeshagentError
from meshagent.model.identity import Identity
from meshagent.model.paths import Paths
from meshagent.protocol.announce import announcement_message
from meshagent.protocol.pb.istio_ca_pb2 import IstioCertificateRequest
from meshagent.transport.channel import announce_stream, create_certificate_call
from tests.hub.hosts import Newcomer, RunningHub, announced, announced_service, csr_pem, on_loop, running_hub


def place(root: Path) -> Place:
    return Place(Paths(root))


async def announces(hub: RunningHub, identity: Identity) -> bool:
    async with hub.channel(identity) as channel:
        stream = announce_stream(channel)
        await stream.write(announcement_message(announced(announced_service())))
        return bool((await stream.read()).services[0].accepted)


async def renewed(hub: RunningHub, newcomer: Newcomer, identity: Identity) -> Identity:
    async with hub.channel(identity) as channel:
        answer = await create_certificate_call(channel, IstioCertificateRequest(csr=csr_pem(newcomer.key)))
    return newcomer.identity(answer)


@on_loop
async def test_a_hub_moves_with_its_backup_and_hosts_come_back_even_with_certificates_it_never_saw(
    tmp_path: Path,
) -> None:
    there, file = tmp_path / "there", tmp_path / "hub.backup"
    newcomer, late = Newcomer("cache-1"), Newcomer("late")
    async with running_hub(tmp_path / "here") as hub:
        first = newcomer.identity(await hub.enroll(newcomer, await hub.token("cache")))
        assert await announces(hub, first)
        spare = await hub.token("late")
        made = await asyncio.to_thread(back_up, place(tmp_path / "here"), file)
        assert (made.hosts, made.trust_domain) == (1, "mesh.internal")
        second = await renewed(hub, newcomer, first)
        stranger = late.identity(await hub.enroll(late, spare))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and is_archive(file)

    done = await asyncio.to_thread(restore, file, place(there), force=False)
    assert (done.tokens_revoked, done.set_aside) == (1, None)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (there / "var/lib/meshagent-hub").rglob("*") if p.is_file()} == {
        0o600
    }
    async with running_hub(there) as hub:
        assert (await hub.admin("ca.status"))["ca_hash"] == made.ca_hash
        for identity in (first, second):
            assert await announces(hub, identity)
        third = await renewed(hub, newcomer, second)
        assert await announces(hub, third)
        with pytest.raises(grpc.aio.AioRpcError) as unknown:  # it joined after the backup
            await announces(hub, stranger)
        assert unknown.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(MeshagentError) as burnt:  # its token was used after the backup
            await hub.enroll(Newcomer("another"), spare)
        assert burnt.value.code == "token-unusable" or "revoked" in burnt.value.message


@on_loop
async def test_a_backup_under_load_is_one_moment_and_stops_nobody(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:

        async def write() -> None:
            for _ in range(60):
                await hub.token("web")

        writing = asyncio.create_task(write())
        made = []
        while not writing.done():
            file = tmp_path / f"backup-{len(made)}"
            await asyncio.to_thread(back_up, place(tmp_path), file)
            made.append(file)
        await writing
    counts = []
    for number, file in enumerate(made):
        restore(file, place(tmp_path / f"r{number}"), force=False)
        async with running_hub(tmp_path / f"r{number}") as hub:
            counts.append(len((await hub.admin("token.list"))["tokens"]))
    assert counts == sorted(counts) and counts[-1] <= 60


def test_a_restore_over_a_hub_is_refused_and_forced_it_keeps_what_was_there(tmp_path: Path) -> None:
    async def once(root: Path, *names: str) -> str:
        async with running_hub(root) as hub:
            for name in names:
                await hub.join(name)
            if root == tmp_path / "b":
                with pytest.raises(MeshagentError) as running:
                    restore(file, place(root), force=True)
                assert running.value.code == "already-running"
            return str((await hub.admin("ca.status"))["ca_hash"])

    file = tmp_path / "file"
    first = asyncio.run(once(tmp_path / "a", "one"))
    back_up(place(tmp_path / "a"), file)
    second = asyncio.run(once(tmp_path / "b", "two"))
    with pytest.raises(MeshagentError) as caught:
        restore(file, place(tmp_path / "b"), force=False)
    assert caught.value.exit_code == 5 and "--force" in caught.value.hint
    done = restore(file, place(tmp_path / "b"), force=True)
    assert done.set_aside is not None and (done.set_aside / "hub.db").exists()
    assert first != second and asyncio.run(_ca(tmp_path / "b")) == first
    assert (done.set_aside / "ca/made.json").exists()


async def _ca(root: Path) -> str:
    async with running_hub(root) as hub:
        return str((await hub.admin("ca.status"))["ca_hash"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good backup."""
    root = tmp_path_factory.mktemp("whole")
    asyncio.run(_ca(root))
    back_up(place(root), root / "file")
    return root / "file"


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_backup_changes_nothing(whole: Path, tmp_path: Path, where: float, how: str) -> None:
    data = bytearray(whole.read_bytes())
    at = int(len(data) * where)
    if how == "cut":
        del data[at:]
    else:
        data[at] ^= 0x55
    file = tmp_path / "file"
    file.write_bytes(data)
    with contextlib.suppress(MeshagentError):
        restore(file, place(tmp_path / "root"), force=False)
        pytest.fail("a damaged backup was taken")
    state = tmp_path / "root/var/lib/meshagent-hub"
    assert not list(state.iterdir())


def test_what_is_no_backup_is_neither_restored_nor_overwritten(whole: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(MeshagentError) as caught:
        restore(file, place(tmp_path / "root"), force=False)
    assert caught.value.code == "backup-damaged"
    with pytest.raises(MeshagentError) as caught:
        back_up(place(whole.parent), file)
    assert caught.value.code == "not-a-backup" and file.read_text() == "mine"
    again = tmp_path / "again"
    shutil.copy(whole, again)
    again.chmod(0o644)
    back_up(place(whole.parent), again)  # an older backup is what a schedule writes over
    assert stat.S_IMODE(again.stat().st_mode) == 0o600


def test_without_a_hub_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(MeshagentError) as caught:
        back_up(place(tmp_path), tmp_path / "file")
    assert caught.value.code == "no-hub" and not (tmp_path / "file").exists()
