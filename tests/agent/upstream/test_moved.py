"""A stream is given up when an address of this host goes, not when one comes."""

import asyncio

from meshagent.agent.upstream.moved import until_moved
from meshagent.model.address import IPAddress, parse_ip
from meshagent.runtime.latest import Latest


def ips(*texts: str) -> tuple[IPAddress, ...]:
    return tuple(ip for ip in map(parse_ip, texts) if ip is not None)


def test_another_address_is_no_move_and_a_lost_one_is() -> None:
    async def story() -> None:
        addresses = Latest(ips("10.0.0.1"))
        moved = asyncio.create_task(until_moved(addresses))
        await asyncio.sleep(0)
        addresses.set(ips("10.0.0.1", "10.0.0.2"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not moved.done()
        addresses.set(ips("10.0.0.2"))
        await asyncio.wait_for(moved, 30)

    asyncio.run(story())
