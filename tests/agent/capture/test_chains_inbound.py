"""What comes in to a captured host: plain text counted by address, or refused, in the kernel."""

import pytest

from meshagent.agent.capture import verify
from meshagent.agent.capture.verify import Caller
from meshagent.model.policy import HostPolicy
from meshagent.model.posture import PlaintextMode, Posture
from tests.agent.capture.stand import Stand, mesh, service

pytestmark = pytest.mark.root


def callers(stand: Stand) -> list[tuple[str, int, int, bool]]:
    found = verify.callers(stand.guard.listing())
    return [(str(caller.address), caller.port, caller.count, caller.refused) for caller in found]


def test_permissive_leaves_plain_callers_alone_and_counts_them_by_address(stand: Stand) -> None:
    stand.serve(stand.host, 8080, "app")
    stand.capture(Posture.PERMISSIVE, services=(service("web", 8080),))
    peer, host = stand.own(stand.peer), stand.own(stand.host)

    for _ in range(3):
        assert stand.dial(host, 8080, stand.peer).startswith(f"app {peer} ")

    assert callers(stand) == [(peer, 8080, 3, False)]


def test_the_host_itself_and_other_ports_are_not_counted(stand: Stand) -> None:
    stand.serve(stand.host, 8080, "app")
    stand.serve(stand.host, 9090, "other")
    stand.capture(Posture.PERMISSIVE, services=(service("web", 8080),))
    host = stand.own(stand.host)

    assert stand.dial(host, 8080).startswith("app ")
    assert stand.dial(stand.loopback, 8080).startswith("app ")
    assert stand.dial(host, 9090, stand.peer).startswith("other ")

    assert callers(stand) == []


def test_strict_refuses_new_plain_callers_while_their_open_connections_live(stand: Stand) -> None:
    stand.serve(stand.host, 8080, "app")
    host = stand.own(stand.host)
    with stand.open(host, 8080, stand.peer) as before:
        stand.capture(Posture.PERMISSIVE, services=(service("web", 8080),))
        with stand.open(host, 8080, stand.peer) as permissive:
            stand.capture(Posture.STRICT, services=(service("web", 8080),))

            with pytest.raises(ConnectionRefusedError):
                stand.dial(host, 8080, stand.peer)
            assert stand.dial(host, 8080).startswith("app "), "the host itself is not a plain caller"
            assert before.says() and permissive.says()

    refused = [caller for caller in callers(stand) if caller[3]]
    assert refused == [(stand.own(stand.peer), 8080, 1, True)]


def test_the_mesh_can_make_one_port_strict(stand: Stand) -> None:
    stand.serve(stand.host, 8080, "app")
    stand.serve(stand.host, 9090, "other")
    policy = HostPolicy({8080: PlaintextMode.STRICT})
    stand.capture(Posture.PERMISSIVE, services=(service("a", 8080), service("b", 9090)), policy=policy)

    with pytest.raises(ConnectionRefusedError):
        stand.dial(stand.own(stand.host), 8080, stand.peer)
    assert stand.dial(stand.own(stand.host), 9090, stand.peer).startswith("other ")


def test_the_port_of_sshd_is_never_refused_even_when_declared_strict(stand: Stand) -> None:
    stand.serve(stand.host, 22, "sshd")
    stand.capture(Posture.STRICT, services=(service("ssh", 22),))

    assert stand.dial(stand.own(stand.host), 22, stand.peer).startswith("sshd ")
    assert callers(stand) == []


def test_counts_survive_a_replacement_of_the_rules(stand: Stand) -> None:
    stand.serve(stand.host, 8080, "app")
    host, peer = stand.own(stand.host), stand.own(stand.peer)
    stand.capture(Posture.PERMISSIVE, services=(service("web", 8080),))
    stand.dial(host, 8080, stand.peer)
    stand.dial(host, 8080, stand.peer)

    stand.capture(Posture.PERMISSIVE, services=(service("web", 8080), service("other", 9090)))
    stand.dial(host, 8080, stand.peer)

    assert callers(stand) == [(peer, 8080, 3, False)]


def test_rules_tell_their_reason_and_how_often_they_were_met(stand4: Stand) -> None:
    stand = stand4
    stand.proxy()
    stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 80))
    stand.dial(stand.virtual, 80)
    stand.dial(stand.virtual, 80)

    counts = {(count.chain, count.reason): count.packets for count in verify.counts(stand.guard.listing())}
    assert counts["to_proxy", "to the proxy"] == 2
    assert all(reason for _, reason in counts)


def test_callers_are_sorted_busiest_first(stand4: Stand) -> None:
    stand = stand4
    stand.serve(stand.host, 8080, "app")
    stand.serve(stand.host, 9090, "other")
    stand.capture(Posture.PERMISSIVE, services=(service("a", 8080), service("b", 9090)))
    host = stand.own(stand.host)
    stand.dial(host, 8080, stand.peer)
    stand.dial(host, 9090, stand.peer)
    stand.dial(host, 9090, stand.peer)

    found = verify.callers(stand.guard.listing())
    assert [(caller.port, caller.count) for caller in found] == [(9090, 2), (8080, 1)]
    assert isinstance(found[0], Caller)
