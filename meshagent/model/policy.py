"""What the mesh says about one host's own ports."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshagent.model.posture import PlaintextMode


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """Workload port (the one the process listens on) -> what PeerAuthentication says about plain text there.

    A declared port that is absent has no verdict from the mesh: the host's posture alone decides.
    """

    plaintext: Mapping[int, PlaintextMode] = field(default_factory=dict)
