"""Telling systemd that we are ready, alive or stopping (sd_notify(3)); silent where nobody asked.

Whoever calls holds up connections or rules if it waits: a socket that is full (ten messages nobody has read) costs
nothing for what is said again anyway, and at most a second for what is said once.
"""

import os
import socket

#: Said again soon.
_AGAIN = ("WATCHDOG=", "STATUS=")
_ONCE_SECONDS = 1.0


def notify(*states: str) -> bool:
    """Send states such as ``READY=1``, ``STATUS=…``, ``WATCHDOG=1``, ``STOPPING=1``; False when it wasn't taken."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(0.0 if all(state.startswith(_AGAIN) for state in states) else _ONCE_SECONDS)
            sender.connect("\0" + address[1:] if address.startswith("@") else address)
            sender.sendall("\n".join(states).encode())
    except OSError:
        return False
    return True


def watchdog_interval() -> float | None:
    """Seconds between two ``WATCHDOG=1``: half of what systemd allows; None when there is no watchdog for us."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdecimal() or pid != str(os.getpid()) or int(microseconds) == 0:
        return None
    return int(microseconds) / 2_000_000
