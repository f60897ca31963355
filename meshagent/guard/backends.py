"""How rules can reach this kernel: nftables by its library, or legacy iptables by its programs.

Legacy tables are opened only where they are needed or in use: asking for them loads kernel modules.
"""

import contextlib
from typing import Protocol

from meshagent.guard.legacy import Legacy, LegacyError, find_program
from meshagent.guard.libnftables import Context, NftError


class Nft(Protocol):
    """What the guard does with nftables; see ``libnftables.Context``."""

    def run(self, commands: str) -> str: ...
    def check(self, commands: str) -> None: ...
    def table_json(self, table: str) -> str | None: ...
    def contents_json(self, table: str) -> str | None: ...
    def set_json(self, table: str, name: str) -> str | None: ...
    def exists(self, table: str) -> bool: ...
    def close(self) -> None: ...


class NoNft:
    """Where nftables can't be used: nothing is there, and every command is refused with the reason."""

    def __init__(self, why: str) -> None:
        self.why = why

    def run(self, commands: str) -> str:
        raise NftError(self.why)

    def check(self, commands: str) -> None:
        raise NftError(self.why)

    def table_json(self, table: str) -> str | None:
        return None

    def contents_json(self, table: str) -> str | None:
        return None

    def set_json(self, table: str, name: str) -> str | None:
        return None

    def exists(self, table: str) -> bool:
        return False

    def close(self) -> None:
        """Nothing is open."""


def open_nft() -> Context | NoNft:
    """A context that the kernel has answered, or what says why there is none."""
    context = None
    try:
        context = Context()
        context.check("table inet meshagent_probe { }\n")
    except NftError as error:
        if context is not None:
            context.close()
        return NoNft(str(error))
    return context


def why_no_nft() -> str:
    """Why nftables can't be used here, for root; empty where it can."""
    found = open_nft()
    found.close()
    return found.why if isinstance(found, NoNft) else ""


def why_no_legacy(*, ask_kernel: bool = True) -> str:
    """Why legacy iptables can't be used here; empty where it can. Without ``ask_kernel`` only programs count."""
    try:
        if ask_kernel:
            Legacy().close()
        else:
            for word in ("iptables", "ip6tables"):
                find_program(word, "restore")
                find_program(word, "save")
    except LegacyError as error:
        return str(error)
    return ""


def legacy_zones() -> bool:
    """Whether legacy rules can ask for conntrack zones; True where legacy iptables can't be used at all. For root."""
    try:
        with contextlib.closing(Legacy()) as legacy:
            return legacy.zones
    except LegacyError:
        return True
