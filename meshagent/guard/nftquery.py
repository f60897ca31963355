"""Is a table of nftables there? Asked of the kernel itself, for where libnftables is gone but its tables may not be.

One NFT_MSG_GETTABLE on a netlink socket (linux/netfilter/nf_tables.h); a kernel without nf_tables has no table.
"""

import socket
import struct

_NETLINK_NETFILTER = 12
_GETTABLE = (10 << 8) | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_TABLE_NAME = 1  # NFTA_TABLE_NAME
_INET = 1  # NFPROTO_INET
_REQUEST = 1  # NLM_F_REQUEST
_ERROR = 2  # NLMSG_ERROR
_HEAD = struct.Struct("=IHHII")


def inet_table_exists(name: str) -> bool:
    """Whether ``table inet name`` exists in this network namespace; False where that can't be asked."""
    label = name.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(label), _TABLE_NAME) + label.ljust((len(label) + 3) & ~3, b"\0")
    body = struct.pack("=BBH", _INET, 0, 0) + attribute
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as asked:
            asked.settimeout(1.0)
            asked.send(_HEAD.pack(_HEAD.size + len(body), _GETTABLE, _REQUEST, 1, 0) + body)
            return bool(_HEAD.unpack_from(asked.recv(1 << 16))[1] != _ERROR)
    except OSError:
        return False
