"""When a host of the demo counts as ready, and what is missing while it doesn't."""

from meshagent.demo.narrator import check
from meshagent.demo.world import World
from meshagent.lab import Host


def is_ready(world: World, host: Host, *, connected: bool = True) -> bool:
    """Captured, Envoy ready, its own service healthy, all services known; ``connected``: to the hub, and announced.

    True, or ``DemoError`` with what is missing.
    """
    status = host.meshagent_json("status", check=False)
    check(status and status["enrolled"], "no status")
    plane, capture, proxy, services = (status[key] for key in ("control_plane", "capture", "proxy", "services"))
    check(plane["connected"] or not connected, f"not connected to the hub: {plane}")
    check(capture["active"], f"nothing is captured: {capture}")
    check(proxy["ready"], f"Envoy is not ready: {proxy}")
    check(all(s["healthy"] and (s["host"] or not connected) for s in services), f"its services: {services}")
    known = [service["host"] for service in host.meshagent_json("peers")["services"]]
    check(len(known) >= len(world.members), f"it knows only {known}; {status['conditions']}")
    return True
