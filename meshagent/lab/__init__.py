"""Hosts as namespaces: test machines that behave like the real thing and leave nothing behind.

A lab host is a network, a mount and a UTS namespace with an /etc of its own (so resolv.conf, hosts and passwd are
its own and a user created there exists only there), a /run of its own, and a root for the agent or hub below
``/run/ma-<6 hex>/<host>``. A bridge in one more namespace joins the hosts; this machine's own network is not touched.

    with Lab() as lab:
        web, cache = lab.host("web"), lab.host("cache")
        recipes.redis(cache)
        assert web.run(["redis-cli", "-h", cache.address4, "ping"]).stdout == "PONG\\n"

Everything under test is started through the command line: the lab imports neither agent nor hub.
Read lab.py first (the story of a lab), then host.py (what one can do on a host); recipes.py holds legacy services,
snapshot.py what a host looks like before and after, capture.py what was on the wire.
"""

from meshagent.lab.host import Host
from meshagent.lab.lab import Lab, sweep
from meshagent.lab.program import Program
from meshagent.lab.waiting import wait_until

__all__ = ["Host", "Lab", "Program", "sweep", "wait_until"]
