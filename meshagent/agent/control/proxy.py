"""What the control socket answers about the proxy: what supervises it knows, and the hot restart."""

from typing import Any

from meshagent.agent.control.status import rfc3339
from meshagent.agent.envoy.admin import AdminError
from meshagent.agent.envoy.ending import connected, in_use
from meshagent.agent.envoy.process import Proxy
from meshagent.agent.envoy.state import Parent, ProxyState
from meshagent.transport.local_server import Method


class ProxyMethods:
    """Method name -> answer, as docs/cli.md shapes them."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def table(self) -> dict[str, Method]:
        return {"proxy.show": self.show, "proxy.restart": self.restart}

    async def show(self, _params: dict[str, Any]) -> dict[str, Any]:
        """State, and what Envoy itself says as far as it answers."""
        state = self._proxy.state.value
        return {**describe(state), **(await self._asked() if state.pid else _NOTHING)}

    async def restart(self, _params: dict[str, Any]) -> dict[str, Any]:
        """Hot: answers once the next epoch serves."""
        return describe(await self._proxy.restart())

    async def _asked(self) -> dict[str, Any]:
        try:
            found = await self._proxy.admin.stats(_STATS)
        except AdminError:
            return _NOTHING
        open_now = await connected()
        return {
            "uptime": found.get("server.uptime"),
            "connections": None if open_now is None else in_use(open_now, self._proxy.state.value.pid),
            "memory_allocated": found.get("server.memory_allocated"),
            "memory_reserved": found.get("server.memory_heap_size"),
        }


_STATS = r"^server\.(uptime|memory_allocated|memory_heap_size)$"
_NOTHING: dict[str, Any] = dict.fromkeys(("uptime", "connections", "memory_allocated", "memory_reserved"))


def describe(state: ProxyState) -> dict[str, Any]:
    """The supervisor's view."""
    return {
        "pid": state.pid or None,
        "version": state.version,
        "epoch": state.epoch,
        "ready": state.ready,
        "restarts": state.restarts,
        "since": rfc3339(state.since),
        "adopted": state.adopted,
        "crash_loop": state.looping,
        "upgrade": state.upgrade or None,
        "parent": _parent(state.parent),
    }


def _parent(parent: Parent | None) -> dict[str, Any] | None:
    if parent is None:
        return None
    return {
        "pid": parent.pid,
        "epoch": parent.epoch,
        "version": parent.version,
        "since": rfc3339(parent.since),
        "connections": parent.connections,
    }
