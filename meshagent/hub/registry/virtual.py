"""Service host names: each has one virtual address per family and one owner. Pure, but for ``record``.

Names keep their row when nobody serves them any more, so a name that comes back has its old address, and an address
that some client still remembers doesn't suddenly mean another service: only when all 65,534 are given out does the
name that was unused for longest lose its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address

from meshagent.hub.store.interface import Transaction
from meshagent.hub.store.rows import ServiceRow
from meshagent.model.address import VIRTUAL4, VIRTUAL6
from meshagent.model.errors import MeshagentError

#: Without 240.240.0.0 and 240.240.255.255, which some stacks treat as network and broadcast address.
LAST_INDEX = VIRTUAL4.num_addresses - 2


@dataclass(frozen=True, slots=True)
class Wanted:
    """Who needs a service host name now; ``service_account`` empty = a ServiceEntry, which changes no owner."""

    namespace: str
    service_account: str = ""


@dataclass(frozen=True, slots=True)
class Allocation:
    """``rows`` as they will be; ``written`` are new or changed, ``dropped`` gave their address to another name."""

    rows: Mapping[str, ServiceRow]
    written: tuple[ServiceRow, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.written or self.dropped)


def addresses_of(index: int) -> tuple[IPv4Address, IPv6Address]:
    """The pair of addresses that ``index`` stands for."""
    return VIRTUAL4[index], VIRTUAL6[index]


def allocate(
    rows: Mapping[str, ServiceRow],
    wanted: Mapping[str, Wanted],
    released: frozenset[str],
    in_use: Callable[[], frozenset[str]],
    now: datetime,
) -> Allocation:
    """Rows for all of ``wanted``; ``released`` names remember that they were served until now.

    ``in_use`` (asked only when addresses have run out) names what must keep its address. Raises ``MeshagentError``
    (``no-virtual-address``) when nothing can be given up.
    """
    new = dict(rows)
    written: dict[str, ServiceRow] = {}
    dropped: list[str] = []
    for host in released & rows.keys():
        written[host] = new[host] = replace(rows[host], last_used=now)
    last = max((row.index for row in rows.values()), default=0)
    for host, want in wanted.items():
        known = new.get(host)
        if known is None:
            last, given_up = _free_index(new, last, in_use)
            for name in given_up:
                del new[name]
                written.pop(name, None)
                dropped.append(name)
            known = ServiceRow(host, last, want.namespace, want.service_account, now)
        elif want.service_account not in ("", known.service_account):
            known = replace(known, namespace=want.namespace, service_account=want.service_account, last_used=now)
        if new.get(host) != known:
            written[host] = new[host] = known
    return Allocation(new, tuple(written.values()), tuple(dropped))


def rebinds(rows: Mapping[str, ServiceRow], plan: Allocation) -> bool:
    """True when ``plan`` gives a name another address or owner than it has in ``rows``, or takes an address away."""

    def bound(row: ServiceRow | None) -> tuple[int, str, str] | None:
        return None if row is None else (row.index, row.namespace, row.service_account)

    return bool(plan.dropped) or any(bound(rows.get(new.host)) != bound(new) for new in plan.written)


def _free_index(
    rows: Mapping[str, ServiceRow], last: int, in_use: Callable[[], frozenset[str]]
) -> tuple[int, tuple[str, ...]]:
    """A free index, and the name that had to give it up, if one had to."""
    if last < LAST_INDEX:
        return last + 1, ()
    kept = in_use()
    unused = min((row for row in rows.values() if row.host not in kept), key=lambda r: r.last_used, default=None)
    if unused is None:
        raise MeshagentError(
            "no-virtual-address",
            f"all {LAST_INDEX} virtual addresses are in use",
            hint="remove services that are not needed any more",
        )
    return unused.index, (unused.host,)


def record(tx: Transaction, plan: Allocation) -> None:
    """Write a plan down."""
    for host in plan.dropped:
        tx.drop_service(host)
    for row in plan.written:
        tx.put_service(row)
