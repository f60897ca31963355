"""Programs that would lose something when this host leaves: they talk to what only the mesh knows the way to. Pure.

An open connection to a virtual address came of a mesh name; one to a claimed literal matters where nothing answers
there any more without the mesh. Both outlast a leave at most for the drain, and can't be made again.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

from meshagent.agent.judge.risks import Risk
from meshagent.agent.judge.values import OpenConnection
from meshagent.model.address import IPAddress, MeshAddress

MESH_IN_USE = "mesh-in-use"
_MOST_NAMED = 5


def candidates(found: Iterable[OpenConnection], claimed: Collection[MeshAddress]) -> frozenset[MeshAddress]:
    """Claimed literals with open connections: whether their machines live is to be found out."""
    return frozenset(address for each in found if (address := _remote(each)) in claimed)


def users(
    found: Iterable[OpenConnection], dead: Collection[MeshAddress], names: Mapping[IPAddress, str]
) -> tuple[str, ...]:
    """One line for each program and destination; ``names`` says what a virtual address is called."""
    lines: dict[str, None] = {}
    for each in found:
        address = _remote(each)
        if address.virtual or address in dead:
            program = f"{each.program} (pid {each.pid})" if each.program else "a program"
            name = names.get(address.ip, "whose machine is gone" if address in dead else "")
            lines[f"{program} to {address.ip} port {address.port}" + (f", {name}" if name else "")] = None
    return tuple(lines)


def in_use_risk(lines: Collection[str]) -> Iterable[Risk]:
    """The risk of leaving now; none where nobody uses the mesh."""
    if lines:
        named = "; ".join(list(lines)[:_MOST_NAMED])
        more = f"; and {len(lines) - _MOST_NAMED} more" if len(lines) > _MOST_NAMED else ""
        yield Risk(
            MESH_IN_USE,
            f"programs here use what only the mesh reaches: {named}{more}",
            "stop them or point them elsewhere first",
        )


def dead_ones(asked: Iterable[MeshAddress], lives: Callable[[MeshAddress], bool]) -> frozenset[MeshAddress]:
    """Those that don't answer without the mesh."""
    return frozenset(address for address in asked if not lives(address))


def _remote(each: OpenConnection) -> MeshAddress:
    return MeshAddress(each.remote_ip, each.remote_port)
