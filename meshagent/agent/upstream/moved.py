"""When a host loses an address: streams opened from it are dead, and only a timeout of many seconds would tell."""

from meshagent.model.address import IPAddress
from meshagent.runtime.latest import Latest


async def until_moved(addresses: Latest[tuple[IPAddress, ...]]) -> None:
    """Return when an address that this host has now is gone. One more address harms nobody."""
    before = frozenset(addresses.value)
    async for now in addresses.watch():
        if before.difference(now):
            return
