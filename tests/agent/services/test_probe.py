import asyncio
import contextlib
from ipaddress import ip_address

from meshagent.agent.services.probe import Prober, health_of
from meshagent.model.service import Check, DeclaredService
from meshagent.runtime.latest import Latest
from tests.agent.recorder import Recorder

FAST = Check(interval=0.02, timeout=0.5, healthy=1, unhealthy=2)


def service(port: int, name: str = "web", check: Check = FAST) -> DeclaredService:
    return DeclaredService(name, port, port, check=check)


async def listen(port: int = 0) -> asyncio.Server:
    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    return await asyncio.start_server(accept, "127.0.0.1", port)


def prober(conditions: Recorder, **options: int) -> Prober:
    return Prober(lambda _: ip_address("127.0.0.1"), conditions, mark=None, **options)


async def until(probing: Prober, name: str, healthy: bool) -> None:
    async with asyncio.timeout(10):
        async for health in probing.health.watch():
            if name in health and health[name].healthy is healthy and health[name].reason != "not checked yet":
                return


def test_a_service_is_healthy_while_its_process_listens_and_a_condition_while_not() -> None:
    async def story() -> None:
        conditions = Recorder()
        probing = prober(conditions)
        server = await listen()
        web = service(server.sockets[0].getsockname()[1])
        assert health_of(probing.health.value, web).reason == "not checked yet"
        probing.update((web,))
        await until(probing, "web", True)
        server.close()
        await until(probing, "web", False)
        assert "nothing listens" in conditions.held["service-unhealthy", "web"]
        server = await listen(web.port)
        await until(probing, "web", True)
        assert conditions.codes() == []
        server.close()
        probing.update(())

    asyncio.run(story())


def test_a_service_no_longer_declared_is_forgotten_with_its_condition() -> None:
    async def story() -> None:
        conditions = Recorder()
        probing = prober(conditions)
        declared = Latest((service(1),))
        running = asyncio.create_task(probing.run(declared))
        await until(probing, "web", False)
        declared.set(())
        async with asyncio.timeout(30):
            while probing.health.value:
                await probing.health.newer(probing.health.version)
        assert conditions.codes() == []
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    asyncio.run(story())


def test_a_changed_label_does_not_make_a_healthy_service_unhealthy() -> None:
    async def story() -> None:
        probing = prober(Recorder())
        server = await listen()
        port = server.sockets[0].getsockname()[1]
        probing.update((service(port),))
        await until(probing, "web", True)
        probing.update((DeclaredService("web", port, port, labels=(("v", "2"),), check=FAST),))
        assert probing.health.value["web"].healthy
        probing.update(())
        server.close()

    asyncio.run(story())


def test_no_more_checks_run_at_a_time_than_allowed() -> None:
    async def story() -> None:
        now = most = 0

        async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.02)
            now -= 1
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(slow, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        probing = prober(Recorder(), concurrency=3)
        check = Check("http", interval=60)
        probing.update(tuple(service(port, f"s{i}", check) for i in range(20)))
        for i in range(20):
            await until(probing, f"s{i}", True)
        assert 1 <= most <= 3
        probing.update(())
        server.close()

    asyncio.run(story())


def test_after_a_failed_check_the_next_one_does_not_wait_for_a_long_interval() -> None:
    async def story() -> None:
        probing = prober(Recorder())
        server = await listen()
        slow = service(
            server.sockets[0].getsockname()[1], check=Check(interval=3.0, timeout=0.5, healthy=1, unhealthy=2)
        )
        probing.update((slow,))
        await until(probing, "web", True)
        server.close()
        began = asyncio.get_running_loop().time()
        await until(probing, "web", False)
        assert asyncio.get_running_loop().time() - began < 5.0, "two failures at 3 s each would be 6 s"
        probing.update(())

    asyncio.run(story())
