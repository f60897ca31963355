"""By which backends rules can reach this kernel; asked once when the agent starts, and by whoever acts without it."""

import os

from meshagent.guard.backends import legacy_zones, why_no_legacy, why_no_nft
from meshagent.machine import facts as machine_facts


def usable_backends() -> tuple[bool, bool]:
    """Whether rules can reach this kernel by nftables, and by legacy iptables. Asks the kernel where we are root.

    Where nftables can be used the kernel isn't asked about legacy tables: that would load their modules.
    """
    root = os.geteuid() == 0
    nft = machine_facts.gather().nft and not (root and why_no_nft())
    return nft, not why_no_legacy(ask_kernel=root and not nft)


def usable_zones(*, nft: bool) -> bool:
    """Whether rules can ask for conntrack zones; without root nobody knows, and they are taken to be there."""
    return nft or os.geteuid() != 0 or legacy_zones()
