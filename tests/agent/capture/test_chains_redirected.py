"""Ports that the mesh wants redirected: the proxy gets what comes in for them, and nothing goes around it in strict."""

from ipaddress import ip_network

import pytest

from meshagent.agent.capture import verify
from meshagent.config.settings import CaptureConfig, Exclude, FailurePolicy, RedirectMode
from meshagent.model.policy import HostPolicy, RedirectReason
from meshagent.model.posture import PlaintextMode, Posture
from tests.agent.capture.stand import Stand, service
from tests.agent.capture.test_chains_arriving import TPROXY, backend, inbound_proxy, mode, way

pytestmark = pytest.mark.root

SERVICES = (service("db", 3306), service("web", 8080))
STRICT = PlaintextMode.STRICT


__all__ = ["backend", "mode", "way"]  # fixtures of the rows for everything that comes in


def policy(**strict: PlaintextMode) -> HostPolicy:
    """Port 3306 is redirected; ``db=STRICT``."""
    return HostPolicy({3306: strict["db"]} if strict else {}, {3306: RedirectReason.MUTUAL_TLS})


def callers(stand: Stand) -> set[tuple[int, bool]]:
    return {(caller.port, caller.refused) for caller in verify.callers(stand.guard.listing())}


def test_only_what_comes_in_for_such_a_port_reaches_the_proxy_and_open_connections_stay(
    stand: Stand,
    mode: RedirectMode,
) -> None:
    inbound_proxy(stand, mode)
    for port in (3306, 8080):
        stand.serve(stand.host, port, "app")
    host, peer = stand.own(stand.host), stand.own(stand.peer)
    with stand.open(host, 3306, stand.peer) as before:
        stand.capture(Posture.PERMISSIVE, services=SERVICES, policy=policy(), config=CaptureConfig(mode=mode))
        with stand.open(host, 3306, stand.peer) as redirected:
            assert redirected.greeting == f"proxy {peer} {host} 3306"
            assert stand.dial(host, 8080, stand.peer).startswith("app ")
            assert stand.dial(host, 3306).startswith("app "), "a local caller"
            assert callers(stand) == {(8080, False)}, "whether the other was plain text only the proxy knows"
            assert before.says() and redirected.says()
            stand.capture(Posture.PERMISSIVE, services=SERVICES)
            assert before.says() and redirected.says(), "and when it ends"
    assert stand.dial(host, 3306, stand.peer).startswith("app ")


def test_a_strict_port_is_the_proxys_to_judge_and_nobody_gets_around_it(stand: Stand, mode: RedirectMode) -> None:
    proxy = inbound_proxy(stand, mode)
    app = stand.serve(stand.host, 3306, "app")
    host = stand.own(stand.host)
    wishes = {"services": SERVICES, "policy": policy(db=STRICT), "config": CaptureConfig(mode=mode)}
    stand.capture(Posture.PERMISSIVE, **wishes)
    assert stand.dial(host, 3306, stand.peer).startswith("proxy ")
    assert callers(stand) == set()

    stand.guard.bypass("proxy", "test")
    with pytest.raises(ConnectionRefusedError):
        stand.dial(host, 3306, stand.peer)
    assert callers(stand) == {(3306, True)}
    stand.guard.recapture("proxy")

    network = CaptureConfig(mode=mode, exclude=Exclude(cidrs=(ip_network(stand.own(stand.peer)),)))
    stand.capture(Posture.PERMISSIVE, **wishes | {"config": network})
    with pytest.raises(ConnectionRefusedError):
        stand.dial(host, 3306, stand.peer)

    stand.capture(Posture.PERMISSIVE, **wishes)
    proxy.close()
    with pytest.raises(ConnectionRefusedError):
        stand.dial(host, 3306, stand.peer)
    assert app.accepted == 0


def test_with_a_dead_proxy_plain_text_goes_on_where_the_port_is_permissive(stand: Stand, mode: RedirectMode) -> None:
    stand.serve(stand.host, 3306, "app")
    host = stand.own(stand.host)
    wishes = {"services": SERVICES, "policy": policy()}
    stand.capture(Posture.PERMISSIVE, **wishes, config=CaptureConfig(mode=mode))
    if mode is TPROXY:
        assert stand.dial(host, 3306, stand.peer).startswith("app "), "the kernel itself goes on to the process"
    stand.guard.bypass("proxy", "test")
    assert stand.dial(host, 3306, stand.peer).startswith("app ")
    assert (3306, False) in callers(stand)

    closed = CaptureConfig(mode=mode, on_proxy_failure=FailurePolicy.CLOSED)
    stand.capture(Posture.PERMISSIVE, **wishes, config=closed)
    with pytest.raises(ConnectionRefusedError):
        stand.dial(host, 3306, stand.peer)
