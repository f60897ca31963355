"""Kernel rules: a whole table with many mesh addresses, one address more, and the way around a dead Envoy.

The real guard in a lab host.
"""

import os
import select
import signal
import time
from collections.abc import Iterator
from functools import cache
from ipaddress import IPv4Address, ip_address

from meshagent.agent.capture import intent as intents
from meshagent.agent.capture.apply import Applier
from meshagent.agent.capture.values import HostFacts, Intent, Wishes
from meshagent.guard.client import GuardClient, command
from meshagent.guard.rulewatch import Watch
from meshagent.lab import Host, Lab, wait_until
from meshagent.machine import process
from meshagent.model.address import MeshAddress
from meshagent.model.marks import TABLE
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService
from tests.bench.samples import Sample

_FIRST = IPv4Address("240.240.1.1")


def measure(lab: Lab, times: int) -> Iterator[Sample]:
    """Samples ``apply-N``, ``policy-N``, ``set-update``, ``bypass-flip`` (milliseconds each)."""
    host = lab.host("rules")
    program = host.popen(command(host.root), log="guard")
    client = GuardClient(host.root / "run/meshagent/guard.sock")
    wait_until(client.state, what="the guard to answer")
    applier = Applier(client)
    for number in range(times):
        for count in (100, 5_000):
            _apply(host, applier, Posture.OUTBOUND, count)
            # strict comes from policy open: another set of rules and gates, the same table where the kernel keeps it
            taken = _apply(host, applier, Posture.STRICT, count, "replaced")
            yield Sample(f"policy-{count}", taken, "", number)
            _apply(host, applier, Posture.OUTBOUND, count, "replaced")
            for posture in (Posture.PERMISSIVE, Posture.OUTBOUND):  # other rules
                yield Sample(f"apply-{count}", _apply(host, applier, posture, count, "replaced"), "", number)
        client.state()  # the guard has heard what the kernel announced of the replacement
        yield Sample("set-update", _apply(host, applier, Posture.OUTBOUND, 5_001, "updated"), "", number)
        yield Sample("bypass-flip", host.inside(lambda: _flip(host, client)), "", number)
    client.close()
    program.stop()


def _apply(host: Host, applier: Applier, posture: Posture, count: int, action: str = "") -> float:
    intent = _intent(host, posture, count)

    def act() -> float:
        began = time.perf_counter()
        done = applier.apply(intent)
        taken = (time.perf_counter() - began) * 1e3
        assert action in ("", done.action), f"the rules were {done.action}, not {action}"
        return taken

    return host.inside(act)


def _flip(host: Host, client: GuardClient) -> float:
    """From ``kill`` to the kernel's announcement of the changed verdict."""
    envoy = host.popen([os.environ["MESHAGENT_ENVOY"], "--config-yaml", "{}", "--disable-hot-restart"], log="envoy")
    wait_until(lambda: "starting main dispatch loop" in envoy.text() or not envoy.alive, what="Envoy to run")
    started = process.start_time(envoy.pid)
    assert started is not None and client.watch("proxy", envoy.pid, started, opens=True)
    watch = Watch(TABLE)
    try:
        began = time.perf_counter()
        envoy.send_signal(signal.SIGKILL)
        assert select.select([watch], [], [], 5.0)[0], "the guard did not open the way"
        return (time.perf_counter() - began) * 1e3
    finally:
        watch.close()
        client.recapture("proxy")


def _intent(host: Host, posture: Posture, count: int) -> Intent:
    facts = HostFacts(proxy_uid=61_001, own_addresses=frozenset(map(ip_address, host.addresses)))
    mesh = frozenset(_address(n) for n in range(count))
    return intents.decide(Wishes(posture, services=(DeclaredService("web", 80, 8080),), mesh=mesh), facts)


@cache
def _address(number: int) -> MeshAddress:
    """What stays is the same object, as it is where addresses come from (agent/relay/taps.py)."""
    return MeshAddress(_FIRST + number, 80)
