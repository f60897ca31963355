"""How much memory the proxy may use before it sheds load. Pure.

Measured with Envoy 1.40: 13 MB of its own when idle, 33 KB for each connection it relays, 143 MB with 1,000 services.
"""

#: Of a cgroup's limit: the agent lives in the same one, and what the allocator maps is more than what Envoy counts.
CGROUP_SHARE = 0.75

#: Of the whole host's memory, which belongs to its services: 4 GB let 30,000 connections through.
HOST_SHARE = 0.25

#: Less than this and a mesh of 1,000 services would not start; no host is so small that it matters more.
LEAST = 256 << 20


def heap_limit(configured: int, cgroup: int | None, host: int) -> int:
    """Bytes. ``configured``: proxy.memory, 0 for none; ``cgroup``: its limit, None for none; ``host``: all memory."""
    if configured:
        return configured
    if cgroup is not None and cgroup < host:
        return int(cgroup * CGROUP_SHARE)
    return max(int(host * HOST_SHARE), min(LEAST, int(host * CGROUP_SHARE)))
