"""Our tables in nf_tables: what the kernel can do with them, what it holds, and transactions on them."""

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from meshagent.guard import decide, elements, keeping, readback, setchange, transaction
from meshagent.guard.backends import Nft, NoNft
from meshagent.guard.installing import Facts, Plan, in_place, keeps
from meshagent.guard.libnftables import Context, NftError
from meshagent.guard.nftquery import Asker
from meshagent.guard.state import IPTABLES, Ruleset, State
from meshagent.guard.wire import RequestError
from meshagent.model.marks import ANCHOR_TABLE, HOLD_TABLE, TABLE

#: What a guard can be told to do without, as on an older kernel.
KEEP, OWN = "persist", "owner"
_PROBE = "meshagent_probe"


@dataclass
class Tables:
    """``context`` is the one that owns them. Methods raise ``RequestError``."""

    context: Nft
    owner_supported: bool = False
    keep_supported: bool = False
    _asker: Asker = field(default_factory=Asker)

    def probe(self, without: Collection[str] = ()) -> None:
        """Try what the kernel can do, by dry runs; kernels differ from their version numbers."""
        self.owner_supported = OWN not in without and self._can_own()
        socket = self.context.descriptor if isinstance(self.context, Context) else -1
        wanted = self.owner_supported and KEEP not in without
        self.keep_supported = wanted and socket >= 0 and keeping.can_keep(socket, _PROBE)

    def _can_own(self) -> bool:
        with contextlib.suppress(NftError):
            self.context.check(f"table inet {_PROBE} {{ flags owner; }}\n")
            return True
        return False

    @property
    def anchored(self) -> bool:
        return self._there(ANCHOR_TABLE)

    @property
    def flags(self) -> int | None:
        """Of our table; None where it isn't there, or where nftables can't be used."""
        return None if isinstance(self.context, NoNft) else self._asker.flags(TABLE)

    def _there(self, table: str) -> bool:
        return not isinstance(self.context, NoNft) and self._asker.exists(table)

    def facts(self, state: State, wanted: Ruleset, *, legacy: bool, intact: bool = False) -> Facts:
        """What has to be known to put ``wanted`` in place; ``legacy``: something of ours is in legacy tables."""
        anchored, flags, on_nft = self.anchored, self.flags, wanted.backend != IPTABLES
        facts = Facts(
            self.owner_supported,
            anchored,
            nft=not isinstance(self.context, NoNft),
            nft_present=on_nft or anchored or flags is not None,
            legacy_present=legacy,
            intact=intact,
            keep_supported=self.keep_supported,
            flags=flags,
            hold_present=self.owner_supported and self._there(HOLD_TABLE),
        )
        if not on_nft or in_place(state, wanted, facts):
            return facts
        contents = self._contents() if keeps(wanted, facts) and flags is not None else ()
        return replace(facts, carried=self._carried(state, wanted), contents=contents)

    def _contents(self) -> tuple[tuple[str, str], ...]:
        found = readback.objects(self.context.contents_json(TABLE) or readback.NOTHING)
        return tuple((kind, body["name"]) for kind, body in found if kind in ("chain", "set", "map"))

    def _carried(self, state: State, wanted: Ruleset) -> str:
        """Read just before the replacement; what is counted in the millisecond between is lost."""
        before = state.installed
        if not wanted.rules or before is None:
            return ""
        names = tuple(name for name in wanted.carry if name in before.carry)
        listings = [self.context.set_json(TABLE, name) for name in names]
        found: dict[str, list[readback.Element]] = {}
        for listing in listings:
            found |= readback.dynamic_elements(listing, names) if listing else {}
        return decide.carried_lines(found)

    def run(self, plan: Plan) -> None:
        """One transaction; where the table must be made first, it doesn't stay empty."""
        made = plan.keep and self.flags is None
        if plan.keep:
            self.keep()
        try:
            self._transact(plan)
        except (NftError, OSError) as error:
            if made:
                with contextlib.suppress(NftError):
                    self.context.run(f"delete table inet {TABLE}\n")
            hint = ""
            if "not permitted" in str(error):
                hint = "another process owns the table: is a second guard running in this network namespace?"
            raise RequestError("nft-failed", f"the kernel refused the rules: {error}", hint) from error

    def _transact(self, plan: Plan) -> None:
        socket = self.context.descriptor if isinstance(self.context, Context) else -1
        if plan.changes and not plan.batch and socket >= 0 and setchange.fits(plan.changes):
            transaction.run(socket, setchange.messages(TABLE, plan.changes))
        else:
            self.context.run(plan.batch + elements.change_lines(TABLE, plan.changes))

    def keep(self) -> None:
        """Own the table from now on: an empty one, or what another guard left."""
        assert isinstance(self.context, Context)
        try:
            keeping.keep(self.context.descriptor, TABLE)
        except OSError as error:
            hint = "is a second guard running in this network namespace?"
            raise RequestError("nft-failed", f"the table can't be owned: {error.strerror}", hint) from error

    def reference(self, state: State) -> str:
        """The digest of what should be in the kernel, in the kernel's own words."""
        table = decide.REFERENCE_TABLE
        try:
            self.context.run(decide.reference_batch(state))
            return readback.digest(self.context.table_json(table) or readback.NOTHING)
        except NftError as error:
            raise RequestError("nft-failed", f"the kernel refuses a copy of the rules: {error}") from error
        finally:
            self.context.run(f"table inet {table}\ndelete table inet {table}\n")
