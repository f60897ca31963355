"""Whether a change should wait for a confirmation: yes where a wrong rule could cut off who types."""

from meshagent.machine.login import remote_login
from meshagent.machine.netlink import addresses

#: Long enough to open a second session and look, short enough to wait for when it went wrong.
DEFAULT_SECONDS = 120


def default_confirm_seconds() -> int:
    """120 when this process belongs to a remote login of this host, else 0 (no confirmation)."""
    return DEFAULT_SECONDS if remote_login({address.ip for address in addresses()}) else 0
