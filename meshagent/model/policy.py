"""What the mesh says about one host's own ports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from meshagent.model.posture import PlaintextMode


class RedirectReason(StrEnum):
    """Why connections to a port pass the proxy before they reach the process."""

    MUTUAL_TLS = "mutual-tls"

    @property
    def text(self) -> str:
        """For people."""
        return _TEXTS[self]


_TEXTS = {RedirectReason.MUTUAL_TLS: "peers speak mutual TLS on this port itself (security.istio.io/tlsMode: istio)"}


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """``plaintext``: workload port (the one the process listens on) -> what PeerAuthentication says about plain text
    there. A declared port that is absent has no verdict from the mesh: the host's posture alone decides.

    ``redirect``: workload port -> why what comes in for it is handed to the proxy.
    """

    plaintext: Mapping[int, PlaintextMode] = field(default_factory=dict)
    redirect: Mapping[int, RedirectReason] = field(default_factory=dict)
