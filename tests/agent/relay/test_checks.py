"""The look at a resource before Envoy sees it."""

import pytest

from meshagent.agent.relay.checks import MAX_BODY, defect
from meshagent.protocol.types import CDS, EDS, HOST_POLICY, LDS, NDS, PCDS
from tests.fakes.envoy_resources import eds_cluster, endpoints, tcp_listener


@pytest.mark.parametrize(
    ("type_url", "name", "body", "why"),
    [
        (CDS, "a", eds_cluster("a").SerializeToString(), ""),
        (CDS, "b", eds_cluster("a").SerializeToString(), "named 'a'"),
        (EDS, "a", endpoints("a", 1).SerializeToString(), ""),
        (LDS, "a", tcp_listener("a", 1, "c").SerializeToString(), ""),
        (LDS, "a", b"\xff\xff\xff", "decoded"),
        (NDS, "nametable", b"", ""),
        (NDS, "nametable", b"\xff\xff", "decoded"),
        (HOST_POLICY, "web", b"", ""),
        (PCDS, "x", b"", "not used here"),
        (CDS, "a", bytes(MAX_BODY + 1), "larger"),
    ],
)
def test_a_defect_is_named(type_url: str, name: str, body: bytes, why: str) -> None:
    found = defect(type_url, name, body)
    assert (why in found) if why else found == ""
