import asyncio
import socket
from ipaddress import ip_address

from meshagent.agent.services.locate import Locator
from meshagent.agent.services.target import Where
from meshagent.machine.sockets import listeners
from meshagent.model.address import IPAddress
from meshagent.model.service import DeclaredService
from meshagent.runtime.latest import Latest

V4 = ip_address("10.0.0.5")


def test_a_process_that_starts_is_found_and_a_new_address_is_taken() -> None:
    async def story() -> None:
        with socket.socket() as late:
            late.bind(("0.0.0.0", 0))
            web = DeclaredService("web", 80, late.getsockname()[1])
            addresses: Latest[tuple[IPAddress, ...]] = Latest((V4,))
            locator = Locator(Latest((web,)), addresses, listeners)
            assert locator.check_address(web) == ip_address("127.0.0.1")
            running = asyncio.create_task(locator.run())
            async with asyncio.timeout(10):
                assert (await locator.targets.newer(0))["web"].where is Where.NOWHERE
                late.listen()
                assert (await locator.targets.newer(1))["web"].where is Where.WILDCARD
                addresses.set((ip_address("10.0.0.6"),))
                assert str((await locator.targets.newer(2))["web"].mesh) == "10.0.0.6"
            running.cancel()

    asyncio.run(story())
