"""Which backend captures: nftables where it can be used, else legacy iptables, else a clear word."""

from dataclasses import replace

import pytest

from meshagent.agent.capture import backend
from meshagent.agent.capture import intent as intents
from meshagent.config.settings import Backend, CaptureConfig, Exclude, InboundScope, RedirectMode
from meshagent.model.doors import Door
from meshagent.model.errors import MeshagentError, UsageError
from meshagent.model.posture import Posture
from tests.agent.capture.builders import decided, declared, host_facts

BOTH = host_facts(nft_usable=True, iptables_usable=True)
ONLY_IPTABLES = host_facts(nft_usable=False, iptables_usable=True)
NEITHER = host_facts(nft_usable=False, iptables_usable=False)


@pytest.mark.parametrize(
    ("asked", "facts", "wanted"),
    [
        (Backend.AUTO, BOTH, Backend.NFT),
        (Backend.AUTO, ONLY_IPTABLES, Backend.IPTABLES),
        (Backend.IPTABLES, BOTH, Backend.IPTABLES),
        (Backend.NFT, BOTH, Backend.NFT),
    ],
)
def test_nft_is_taken_where_it_can_be_used_unless_iptables_is_asked_for(asked, facts, wanted) -> None:  # type: ignore[no-untyped-def]
    intent = decided(Posture.OUTBOUND, config=CaptureConfig(backend=asked), facts=facts)
    assert intent.backend is wanted
    assert backend.render(intent).backend == wanted.value


@pytest.mark.parametrize(
    ("asked", "facts", "said"),
    [
        (Backend.AUTO, NEITHER, "neither nftables nor legacy iptables"),
        (Backend.NFT, ONLY_IPTABLES, "capture.backend is nft"),
        (Backend.IPTABLES, host_facts(iptables_usable=False), "capture.backend is iptables"),
    ],
)
def test_what_cannot_be_used_here_is_an_error_that_says_what_to_install(asked, facts, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(MeshagentError, match=said) as error:
        decided(Posture.OUTBOUND, config=CaptureConfig(backend=asked), facts=facts)
    assert error.value.code == "no-capture-backend" and "install" in error.value.hint


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (CaptureConfig(units=("shop.service",)), "capture.units"),
        (CaptureConfig(inbound=InboundScope.ALL, mode=RedirectMode.TPROXY), "capture.mode: tproxy"),
        (CaptureConfig(exclude=Exclude(units=("shop.service",))), "capture.exclude.units"),
    ],
)
def test_what_legacy_iptables_cannot_do_is_refused_by_name(config: CaptureConfig, name: str) -> None:
    with pytest.raises(UsageError, match=name) as error:
        decided(Posture.OUTBOUND, config=config, facts=ONLY_IPTABLES)
    assert "legacy iptables" in error.value.message


def test_what_comes_in_is_handed_over_by_redirect_where_legacy_iptables_captures() -> None:
    config, services = CaptureConfig(inbound=InboundScope.ALL), (declared("web", 80),)
    for facts, mode in ((ONLY_IPTABLES, RedirectMode.REDIRECT), (BOTH, RedirectMode.TPROXY)):
        intent = decided(Posture.PERMISSIVE, services=services, config=config, facts=facts)
        assert intent.inbound_mode is mode
        door = Door.INBOUND_REDIRECT if mode is RedirectMode.REDIRECT else Door.INBOUND_TPROXY
        assert intents.wanted_doors(config, Posture.PERMISSIVE, facts) == {door}
    forced = CaptureConfig(inbound=InboundScope.ALL, backend=Backend.IPTABLES)
    assert decided(Posture.PERMISSIVE, config=forced, facts=BOTH).inbound_mode is RedirectMode.REDIRECT


def test_what_is_lost_with_legacy_iptables_is_told_and_nothing_with_nft() -> None:
    services = (declared("web", 80),)
    assert backend.lost(decided(Posture.PERMISSIVE, services=services, facts=BOTH), BOTH) == ()
    legacy = decided(Posture.PERMISSIVE, services=services, facts=ONLY_IPTABLES)
    assert len(backend.lost(legacy, ONLY_IPTABLES)) == 2
    assert "conntrack zones" in backend.lost(legacy, replace(ONLY_IPTABLES, zones_usable=False))[2]
    assert backend.lost(decided(Posture.OBSERVE, facts=ONLY_IPTABLES), ONLY_IPTABLES) == ()
