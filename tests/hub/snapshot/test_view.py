"""How a host's own proxy reaches its processes."""

import pytest

from meshagent.hub.snapshot.view import Target, target_for
from meshagent.model.address import IPAddress, parse_ip


def ip(text: str) -> IPAddress:
    address = parse_ip(text)
    assert address
    return address


V4, V6, OTHER = ip("10.0.0.1"), ip("fd00::1"), ip("10.9.9.9")
BOTH, DIALLED = (V4, V6), Target(None, None)


@pytest.mark.parametrize(
    ("announced", "family", "own", "expected"),
    [
        ("", 4, BOTH, DIALLED),
        ("::", 4, BOTH, DIALLED),
        ("::", 6, BOTH, DIALLED),
        ("0.0.0.0", 4, BOTH, DIALLED),
        ("0.0.0.0", 6, BOTH, Target(V4, V4)),
        ("0.0.0.0", 6, (V6,), None),
        ("127.0.0.1", 4, BOTH, Target(ip("127.0.0.1"), V4)),
        ("127.0.0.1", 6, BOTH, Target(ip("127.0.0.1"), V4)),
        ("127.0.0.1", 6, (V6,), None),
        ("::1", 4, BOTH, Target(ip("::1"), V6)),
        ("::1", 4, (V4,), None),
        ("10.9.9.9", 4, BOTH, Target(OTHER, None)),
        ("10.9.9.9", 6, BOTH, Target(OTHER, OTHER)),
        ("fd00::1", 6, BOTH, Target(V6, None)),
        ("fd00::1", 4, BOTH, Target(V6, V6)),
    ],
)
def test_the_way_to_a_process(announced: str, family: int, own: tuple[IPAddress, ...], expected: Target | None) -> None:
    assert target_for(announced, family, own) == expected


@pytest.mark.parametrize("announced", ["", "::", "0.0.0.0", "127.0.0.1", "::1", "10.9.9.9", "fd00::1"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("own", [BOTH, (V4,), (V6,), ()])
def test_a_source_is_never_loopback_and_fits_the_destination(
    announced: str, family: int, own: tuple[IPAddress, ...]
) -> None:
    target = target_for(announced, family, own)
    if target and target.source:
        assert not target.source.is_loopback
        assert target.address and target.address.version == target.source.version
    elif target and target.address:
        assert target.address.version == family and not target.address.is_loopback
