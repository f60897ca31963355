"""What the messages say is what nft would have said: asked of the kernel itself."""

import ipaddress
from collections.abc import Iterator

import pytest

from meshagent.guard import elements, setchange, transaction
from meshagent.guard.elements import Change
from meshagent.guard.libnftables import Context

pytestmark = pytest.mark.root

TABLE = """table inet changed {
	set claimed4 {
		type ipv4_addr . inet_service
		counter
	}
	set claimed6 {
		type ipv6_addr . inet_service
	}
}
"""


def key(address: str, port: int) -> bytes:
    return ipaddress.ip_address(address).packed + port.to_bytes(2, "big")


@pytest.fixture
def context() -> Iterator[Context]:
    context = Context()
    context.run(TABLE)
    yield context
    context.run("delete table inet changed\n")
    context.close()


def held(context: Context, name: str) -> list[str]:
    """The set's elements in nft's own words, without counters."""
    listing = context.run(f"list set inet changed {name}\n").partition("elements = {")[2].partition("}")[0]
    return sorted(one.partition(" counter")[0].strip() for one in listing.split(",") if one.strip())


def change(context: Context, changes: dict[str, Change]) -> None:
    transaction.run(context.descriptor, setchange.messages("changed", changes))


def test_addresses_of_both_families_come_and_go(context: Context) -> None:
    one, two = key("240.240.0.1", 80), key("255.255.255.255", 65_535)
    six = key("2001:2::1", 6379)
    change(context, {"claimed4": Change(add=one + two), "claimed6": Change(add=six)})
    assert held(context, "claimed4") == elements.texts("claimed4", one + two)
    assert held(context, "claimed6") == elements.texts("claimed6", six)
    change(context, {"claimed4": Change(delete=one), "claimed6": Change(delete=six)})
    assert (held(context, "claimed4"), held(context, "claimed6")) == (elements.texts("claimed4", two), [])


def test_an_address_may_go_and_come_in_one_change(context: Context) -> None:
    one, two = key("10.0.0.1", 80), key("10.0.0.2", 80)
    change(context, {"claimed4": Change(add=one)})
    change(context, {"claimed4": Change(add=one + two, delete=one)})
    assert held(context, "claimed4") == elements.texts("claimed4", one + two)


def test_what_is_there_may_be_added_again(context: Context) -> None:
    one = key("10.0.0.1", 80)
    for _ in range(2):
        change(context, {"claimed4": Change(add=one)})
    assert held(context, "claimed4") == elements.texts("claimed4", one)


def test_one_address_that_is_not_there_undoes_the_whole_change(context: Context) -> None:
    one, absent = key("10.0.0.1", 80), key("10.0.0.2", 80)
    with pytest.raises(OSError, match="No such file"):
        change(context, {"claimed4": Change(add=one), "claimed6": Change(delete=key("::1", 80))})
    with pytest.raises(OSError, match="No such file"):
        change(context, {"claimed4": Change(add=one, delete=absent)})
    assert held(context, "claimed4") == []


def test_the_most_that_fits_reaches_the_kernel_whole(context: Context) -> None:
    keys = b"".join(key(f"2001:2::{number:x}", 80) for number in range(1, setchange.MOST_KEYS + 1))
    all_of_it = {"claimed6": Change(add=keys)}
    assert setchange.fits(all_of_it) and not setchange.fits({"claimed6": Change(add=keys + key("::1", 1))})
    change(context, all_of_it)
    assert len(held(context, "claimed6")) == setchange.MOST_KEYS
    change(context, {"claimed6": Change(delete=keys)})
    assert held(context, "claimed6") == []
