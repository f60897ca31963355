"""A program and all it starts, on a kernel without IPv6: ``python -m tests.lab.without_ipv6 PROGRAM ARGUMENT…``.

As after a boot with ``ipv6.disable=1``, which can't be had for one namespace: a seccomp filter answers EAFNOSUPPORT to
socket(AF_INET6), and everything else is let through (seccomp(2); struct seccomp_data begins with the call's number at
0, its first argument lies at 16).
"""

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

_SOCKET_CALL = {"x86_64": 41, "aarch64": 198}
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
_REFUSE, _ALLOW = 0x0005_0000 | errno.EAFNOSUPPORT, 0x7FFF_0000


class _Program(ctypes.Structure):
    """struct sock_fprog (linux/filter.h)."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def forget_ipv6() -> None:
    """For this process and its children, for good. Needs root."""
    steps = (
        (_LOAD, 0, 0, 0),
        (_IF_EQUAL, 0, 3, _SOCKET_CALL[platform.machine()]),
        (_LOAD, 0, 0, 16),
        (_IF_EQUAL, 0, 1, socket.AF_INET6),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    kept = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(steps), ctypes.cast(kept, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


if __name__ == "__main__":
    forget_ipv6()
    os.execvp(sys.argv[1], sys.argv[1:])
