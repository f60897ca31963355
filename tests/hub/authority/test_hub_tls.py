"""The hub's own certificate never runs out."""

from meshagent.hub.authority.hub_tls import HubTls
from meshagent.hub.authority.issue import make_root
from meshagent.hub.authority.roots import TrustRoots
from tests.hub.hosts import JumpingClock


def test_the_hub_renews_its_own_certificate_at_half_its_life() -> None:
    clock = JumpingClock()
    root = make_root("mesh.internal", clock.now())
    tls = HubTls(TrustRoots(root, root.pem), "mesh.internal", clock)
    before = tls.context
    assert not tls.renew_if_due()
    clock.offset = 46 * 86400
    assert tls.renew_if_due() and tls.context is not before and not tls.renew_if_due()
