"""Which backend captures here, and the text it is handed. Pure.

``auto`` takes nftables where it can be used: one table of our own, sets, an owner. Legacy iptables is for kernels and
distributions without it, or where somebody asks for it by name.
"""

from meshagent.agent.capture import iptables, nft
from meshagent.agent.capture.values import HostFacts, Intent, Mode
from meshagent.config.settings import Backend, CaptureConfig, InboundScope, RedirectMode
from meshagent.guard.state import Ruleset
from meshagent.model.errors import MeshagentError, UsageError

_INSTALL_NFT = "install nftables (libnftables1) on a kernel with nf_tables"
_INSTALL_IPTABLES = "install iptables (iptables-legacy-restore, ip6tables-legacy-restore) on a kernel with ip_tables"


def choose(config: CaptureConfig, facts: HostFacts) -> Backend:
    """``nft`` or ``iptables``. Raises ``MeshagentError`` where what is asked for can't be done here."""
    backend = _usable(config.backend, facts)
    if backend is Backend.IPTABLES:
        _require_legacy(config)
    return backend


def tproxy(config: CaptureConfig, facts: HostFacts) -> bool:
    """Whether what comes in can be handed over as it is: xt_TPROXY has no place behind the DNAT of others."""
    return facts.tproxy_usable and facts.nft_usable and config.backend is not Backend.IPTABLES


def _require_legacy(config: CaptureConfig) -> None:
    """A rule of iptables that names a control group is dead as soon as the unit ends, and then the kernel refuses every
    change of that table, by whichever program, until the rule is gone (seen, kernel 6.18 and iptables 1.8.9)."""
    dangling = "a rule for a unit that has ended makes every change of the same table fail, also those of others"
    for name, asked, why in (
        ("capture.units", bool(config.units), dangling),
        ("capture.exclude.units", bool(config.exclude.units), dangling),
        (
            "capture.mode: tproxy",
            (config.inbound, config.mode) == (InboundScope.ALL, RedirectMode.TPROXY),
            "TPROXY would take what others forward, and drop what it has no listener for; auto and redirect work",
        ),
    ):
        if asked:
            raise UsageError(
                "unsupported-capture",
                f"{name} can't be done with legacy iptables, which is what captures on this host: {why}",
                hint=f"remove it from agent.yaml, or {_INSTALL_NFT}",
            )


def _usable(asked: Backend, facts: HostFacts) -> Backend:
    if asked is not Backend.IPTABLES and facts.nft_usable:
        return Backend.NFT
    if asked is not Backend.NFT and facts.iptables_usable:
        return Backend.IPTABLES
    why, hint = {
        Backend.IPTABLES: ("capture.backend is iptables, and legacy iptables can't be used here", _INSTALL_IPTABLES),
        Backend.NFT: ("capture.backend is nft, and nftables can't be used here", _INSTALL_NFT),
        Backend.AUTO: ("neither nftables nor legacy iptables can be used here", _INSTALL_NFT),
    }[asked]
    other = "" if asked is Backend.AUTO else ", or set capture.backend to auto"
    raise MeshagentError("no-capture-backend", f"there is nothing to capture with: {why}", hint=hint + other)


def render(intent: Intent) -> Ruleset:
    """The whole desired state for the guard, in the words of the intent's backend."""
    return iptables.render(intent) if intent.backend is Backend.IPTABLES else nft.render(intent)


def lost(intent: Intent, facts: HostFacts) -> tuple[str, ...]:
    """What the backend of this intent can't do here, as sentences for people; nothing for nft."""
    if intent.backend is not Backend.IPTABLES or intent.mode is Mode.OFF:
        return ()
    zones = () if facts.zones_usable else (iptables.NO_ZONES,)
    return (*iptables.lost(intent), *zones)
