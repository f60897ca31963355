"""A database in trouble: one clear error or condition, no second CA, no empty mesh, and hosts notice nothing."""

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshagent.model.errors import MeshagentError
from meshagent.model.identity import Identity
from meshagent.protocol.announce import announcement_message
from meshagent.transport.channel import announce_stream
from tests.fakes.eventually import eventually_async
from tests.hub.hosts import Newcomer, RunningHub, announced, announced_service, on_loop, running_hub

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
input()
"""


@contextlib.contextmanager
def held(database: Path) -> Iterator[int]:
    """Another process holds the write lock."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(database)], stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield holder.pid
        holder.kill()


@contextlib.contextmanager
def filled(directory: Path) -> Iterator[None]:
    """Not a byte is left where ``directory`` is."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as opened, contextlib.suppress(OSError):
        for size in (64 << 10, 512):
            with contextlib.suppress(OSError):
                while opened.write(bytes(size)):
                    pass
    yield
    ballast.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """4 MB of tmpfs."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", str(mounted)], check=True)
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


async def conditions(hub: RunningHub) -> dict[str, str]:
    return {c["code"]: c["text"] for c in (await hub.admin("status"))["conditions"]}


async def wait_for(hub: RunningHub, wanted: set[str]) -> dict[str, str]:
    async def holds() -> bool:
        return (await conditions(hub)).keys() == wanted

    await eventually_async(holds, 30)
    return await conditions(hub)


async def say(stream: Any, *services: Any, generation: int) -> Any:
    await stream.write(announcement_message(announced(*services, generation=generation)))
    return await stream.read()


async def serves_on(hub: RunningHub, known: Identity, trouble: Callable[[], Any], code: str, detail: str) -> None:
    """Hosts that are connected, and hosts that come back, are served; what needs the disk is refused, and tells why."""
    async with hub.channel(known) as channel:
        stream = announce_stream(channel)
        assert (await say(stream, announced_service(), generation=1)).services[0].accepted
        token = await hub.token("late")
        with trouble():
            with pytest.raises(MeshagentError) as caught:
                for _ in range(2000):  # what room there is in the log of changes is used up first
                    await hub.admin("token.create", service_account="x" * 60)
            assert caught.value.code == code and detail in caught.value.message and caught.value.hint
            assert detail in (await wait_for(hub, {code}))[code]
            # the open stream goes on, and the health of a known service still counts
            answer = await say(stream, announced_service(healthy=False), generation=2)
            assert answer.services[0].accepted
            await eventually_async(lambda: _healthy(hub, [False]))
            # a host that comes back is known
            async with hub.channel(known) as again:
                answer = await say(announce_stream(again), announced_service(healthy=False), generation=3)
                assert answer.services[0].accepted
                with pytest.raises(MeshagentError) as refused:
                    await hub.enroll(Newcomer("late"), token)
                assert refused.value.code == code
        await wait_for(hub, set())
        await hub.enroll(Newcomer("late"), token)  # nothing was burnt


async def _healthy(hub: RunningHub, wanted: list[bool]) -> bool:
    return [e["healthy"] for s in (await hub.admin("services"))["services"] for e in s["endpoints"]] == wanted


@on_loop
async def test_while_another_process_holds_the_database_hosts_go_on_and_the_condition_names_it(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        identity = await hub.join("cache-1", "cache")
        await serves_on(hub, identity, lambda: held(tmp_path / "var/lib/meshagent-hub/hub.db"), "store-locked", "(pid ")
    await _unhealthy_after_a_restart(tmp_path)


@pytest.mark.root
@on_loop
async def test_on_a_full_disk_hosts_go_on_and_when_there_is_room_everything_is_written(small_disk: Path) -> None:
    async with running_hub(small_disk) as hub:
        identity = await hub.join("cache-1", "cache")
        await serves_on(hub, identity, lambda: filled(small_disk), "store-full", str(small_disk))
    await _unhealthy_after_a_restart(small_disk)


async def _unhealthy_after_a_restart(root: Path) -> None:
    """What was in force while the disk refused is on it now."""
    async with running_hub(root) as hub:
        (service,) = (await hub.admin("services"))["services"]
        assert [e["healthy"] for e in service["endpoints"]] == [False]
        assert {h["name"] for h in (await hub.admin("hosts"))["hosts"]} == {"cache-1", "late"}


def overwritten(file: Path) -> None:
    """Every page but the first."""
    data = file.read_bytes()
    file.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))


def newer(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version=9999")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "overwritten": (overwritten, "store-corrupt"),
    "garbage": (lambda file: file.write_bytes(b"\x00garbage" * 4000), "store-corrupt"),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:9000]), "store-corrupt"),
    "empty": (lambda file: file.write_bytes(b""), "store-lost"),
    "gone": (lambda file: file.unlink(), "store-lost"),
    "newer": (newer, "store-too-new"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_hub_with_a_damaged_database_does_not_start_and_says_what_to_do(tmp_path: Path, how: str) -> None:
    damage, code = DAMAGE[how]

    async def once() -> str:
        async with running_hub(tmp_path) as hub:
            await hub.join()
            return str((await hub.admin("ca.status"))["ca_hash"])

    before = asyncio.run(once())
    database = tmp_path / "var/lib/meshagent-hub/hub.db"
    whole = database.read_bytes()
    damage(database)
    with pytest.raises(MeshagentError) as caught:
        asyncio.run(once())
    assert caught.value.code == code and caught.value.hint
    database.write_bytes(whole)
    assert asyncio.run(_ca(tmp_path)) == before  # the attempt left everything as it was


async def _ca(root: Path) -> str:
    async with running_hub(root) as hub:
        assert len((await hub.admin("hosts"))["hosts"]) == 1
        return str((await hub.admin("ca.status"))["ca_hash"])


@on_loop
async def test_a_database_that_breaks_under_a_running_hub_is_a_condition_and_hosts_keep_their_streams(
    tmp_path: Path,
) -> None:
    async with running_hub(tmp_path) as hub:
        identity = await hub.join("cache-1", "cache")
        async with hub.channel(identity) as channel:
            stream = announce_stream(channel)
            await say(stream, announced_service(), generation=1)
            _break(tmp_path / "var/lib/meshagent-hub/hub.db")
            with pytest.raises(MeshagentError) as caught:
                await hub.admin("audit")
            assert caught.value.code == "store-corrupt"
            text = (await wait_for(hub, {"store-corrupt"}))["store-corrupt"]
            assert "meshagent hub restore FILE --force" in text
            assert (await say(stream, announced_service(), generation=2)).services[0].accepted
            await eventually_async(lambda: _healthy(hub, [True]))


def _break(database: Path) -> None:
    """Bytes change on the disk behind everybody's back, in file and log alike."""
    for file in (database, database.with_name("hub.db-wal")):
        with file.open("r+b") as opened:
            size = file.stat().st_size
            opened.seek(0)
            opened.write(b"\xa5" * size)
