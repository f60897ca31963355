"""What of this host's traffic takes another way, each with its reason: the counterpart of ``spared``. Pure."""

from collections.abc import Iterable

from meshagent.agent.capture.values import Intent, Mode
from meshagent.model.address import MeshAddress


def redirected(intent: Intent) -> Iterable[tuple[str, str]]:
    """(what, why and where to); plain text on declared ports is not here: it is counted or refused, never turned."""
    if intent.mode is not Mode.ACTIVE:
        return
    down = "direct" if intent.fail_open else "refused"
    yield from _each(intent.virtual, "virtual address of the mesh: to the proxy; refused while it is down")
    yield from _each(intent.claimed, f"claimed by the mesh: to the proxy; {down} while it is down")
    for version in intent.all_families:
        what = f"every other TCP connection that leaves over IPv{version}"
        yield what, f"capture.outbound: all; {down} while the proxy is down"
    for bridge in intent.bridges if intent.bridged_families else ():
        yield f"containers behind {bridge}", "capture.bridges: to addresses of the mesh through the proxy"
    for version in intent.inbound_families:
        how = f"capture.inbound: all, by {intent.inbound_mode.value}; {down} while the proxy is down"
        yield f"what comes in over IPv{version} for a process that listens", how
    for nameserver in intent.nameservers:
        why = "names of the mesh are answered by the agent, all others passed on; direct while it is down"
        yield f"DNS questions to {nameserver}", why


def _each(addresses: Iterable[MeshAddress], why: str) -> Iterable[tuple[str, str]]:
    for address in addresses:
        yield f"{address.ip} port {address.port}", why
