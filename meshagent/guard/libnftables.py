"""libnftables through ctypes: the few calls of libnftables(3) that the guard needs.

In-process a transaction takes 0.1 to 0.5 ms, the nft program 6 to 20 ms; and only a context that lives on can own a
table: the kernel drops a ``flags owner`` table when the netlink socket that made it closes.
"""

import contextlib
import ctypes
import os
import socket
import stat
from pathlib import Path

_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON
_TERSE = 1 << 11  # NFT_CTX_OUTPUT_TERSE: without the elements of sets
_SONAME = "libnftables.so.1"


class NftError(Exception):
    """The library is missing, or the kernel or the parser refused the commands; the text is nft's own."""


class Context:
    """One netlink socket to nf_tables. Not thread-safe. ``close`` also gives up the tables it owns."""

    def __init__(self) -> None:
        self._lib = _load()
        before = _descriptors()
        self._ctx: int | None = self._lib.nft_ctx_new(0)
        opened = _descriptors() - before
        #: The netlink socket, -1 where it can't be told for sure.
        self.descriptor = opened.pop() if len(opened) == 1 else -1
        if not self._ctx:
            raise NftError("libnftables could not open a netlink socket")
        if self._lib.nft_ctx_buffer_output(self._ctx) or self._lib.nft_ctx_buffer_error(self._ctx):
            raise NftError("libnftables could not allocate its buffers")

    def adopt(self, descriptor: int) -> None:
        """Go on with the netlink socket of an earlier context, and so with the tables it owns; closes ``descriptor``.

        libnftables never binds its socket, so it knows no port of its own that could differ.
        """
        os.dup2(descriptor, self.descriptor, inheritable=False)
        os.close(descriptor)

    def run(self, commands: str) -> str:
        """Run commands as one transaction: all or nothing. Returns what nft prints; raises ``NftError``."""
        assert self._ctx is not None
        status = self._lib.nft_run_cmd_from_buffer(self._ctx, commands.encode())
        output = self._lib.nft_ctx_get_output_buffer(self._ctx) or b""
        errors = self._lib.nft_ctx_get_error_buffer(self._ctx) or b""
        if status:
            raise NftError(_first_error(errors.decode(errors="replace")))
        return str(output.decode(errors="replace"))

    def check(self, commands: str) -> None:
        """A dry run in the kernel: everything is validated, nothing is committed. Raises ``NftError``."""
        self._lib.nft_ctx_set_dry_run(self._ctx, True)
        try:
            self.run(commands)
        finally:
            self._lib.nft_ctx_set_dry_run(self._ctx, False)

    def table_json(self, table: str) -> str | None:
        """One inet table with counters and elements as nft's JSON (libnftables-json(5)); None when there is none."""
        return self._list(f"table inet {table}", _JSON)

    def contents_json(self, table: str) -> str | None:
        """What is in an inet table, without the elements of sets; None when there is none."""
        return self._list(f"table inet {table}", _JSON | _TERSE)

    def set_json(self, table: str, name: str) -> str | None:
        """One set of an inet table with its elements as nft's JSON; None when there is none."""
        return self._list(f"set inet {table} {name}", _JSON)

    def exists(self, table: str) -> bool:
        """Whether the inet table is there; elements of sets are not fetched."""
        return self._list(f"table inet {table}", _TERSE) is not None

    def _list(self, what: str, flags: int) -> str | None:
        self._lib.nft_ctx_output_set_flags(self._ctx, flags)
        try:
            return self.run(f"list {what}\n")
        except NftError as error:
            if "No such file" in str(error):
                return None
            raise
        finally:
            self._lib.nft_ctx_output_set_flags(self._ctx, 0)

    def close(self) -> None:
        if self._ctx:
            self._lib.nft_ctx_free(self._ctx)
            self._ctx = None


def _descriptors() -> set[int]:
    """Sockets of netlink that this process has open."""
    found = set()
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(entry.stat().st_mode):
                with socket.socket(fileno=os.dup(int(entry.name))) as copy:
                    found |= {int(entry.name)} if copy.family == socket.AF_NETLINK else set()
    return found


def _load() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL(_SONAME)
    except OSError as error:
        raise NftError(f"{_SONAME} could not be loaded: {error}") from error
    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    signatures: dict[str, tuple[object, list[object]]] = {
        "nft_ctx_new": (pointer, [ctypes.c_uint32]),
        "nft_ctx_free": (None, [pointer]),
        "nft_ctx_buffer_output": (number, [pointer]),
        "nft_ctx_buffer_error": (number, [pointer]),
        "nft_ctx_get_output_buffer": (text, [pointer]),
        "nft_ctx_get_error_buffer": (text, [pointer]),
        "nft_ctx_set_dry_run": (None, [pointer, ctypes.c_bool]),
        "nft_ctx_output_set_flags": (None, [pointer, ctypes.c_uint]),
        "nft_run_cmd_from_buffer": (number, [pointer, text]),
    }
    for name, (restype, argtypes) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = restype, argtypes
    return lib


def _first_error(text: str) -> str:
    """nft repeats the line with a marker below each error; the first 'Error:' line says it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = next((line for line in lines if "Error:" in line), lines[0] if lines else "unknown error")
    return found.partition("Error: ")[2] or found
