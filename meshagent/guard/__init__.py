"""The smallest process of the product: it alone holds the kernel context that owns our nftables table.

Why a process of its own: a table with ``flags owner`` belongs to one netlink socket. Everybody else, even a second
context of the same process, gets EPERM, and when that socket closes the kernel removes the table. So whoever holds it
must outlive agent restarts, hangs and upgrades, and must be small enough to be trusted with that. It also holds what
must still work while the agent hangs: the dead-man timer, and the bypass when the proxy dies.

In: requests of one version, one JSON object per line, on ``guard.sock`` (0600). Out: nft transactions, one small file
about roll-backs. Only the standard library and libnftables by ctypes.

Read decide.py first (what happens on every request and event, pure), then loop.py (who performs it).
"""
