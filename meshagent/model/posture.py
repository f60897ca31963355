"""Postures: how far a host has moved into the mesh (docs/capture.md)."""

from enum import StrEnum


class Posture(StrEnum):
    """What is captured on this host, from nothing to everything declared."""

    OBSERVE = "observe"
    OUTBOUND = "outbound"
    PERMISSIVE = "permissive"
    STRICT = "strict"

    @property
    def captures_outbound(self) -> bool:
        return self is not Posture.OBSERVE

    @property
    def serves_inbound(self) -> bool:
        return self in (Posture.PERMISSIVE, Posture.STRICT)


class PlaintextMode(StrEnum):
    """What happens to plain-text callers of a declared port."""

    PERMISSIVE = "permissive"
    STRICT = "strict"


def stricter(a: PlaintextMode, b: PlaintextMode) -> PlaintextMode:
    """The stricter of posture and mesh policy decides about plain text."""
    return PlaintextMode.STRICT if PlaintextMode.STRICT in (a, b) else PlaintextMode.PERMISSIVE
