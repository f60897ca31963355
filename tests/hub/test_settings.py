"""What a hub is told: defaults that work, mistakes that are named."""

from pathlib import Path

import pytest

from meshagent.hub.settings import HubSettings
from meshagent.model.address import HostPort
from meshagent.model.errors import UsageError
from meshagent.model.paths import Paths

PATHS = Paths(Path("/x"))


def test_what_is_listened_on_is_advertised_when_it_is_one_address() -> None:
    made = HubSettings.make(PATHS, listen="10.0.0.1")
    assert made.listen == (HostPort("10.0.0.1", 15012),) and made.advertise == HostPort("10.0.0.1", 15012)
    assert str(made.store) == "/x/var/lib/meshagent-hub/hub.db"


def test_by_default_both_families_are_listened_on() -> None:
    made = HubSettings.make(PATHS, advertise="hub.example")
    assert HostPort("0.0.0.0", 15012) in made.listen and made.advertise == HostPort("hub.example", 15012)
    assert (HostPort("::", 15012) in made.listen) == Path("/proc/net/if_inet6").exists()


def test_another_port_is_advertised_too() -> None:
    assert HubSettings.make(PATHS, listen="[::1]:7000").advertise == HostPort("::1", 7000)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"trust_domain": "Mesh"}, "bad-name"),
        ({"zone": "a..b"}, "bad-name"),
        ({"root_namespace": "a.b"}, "bad-name"),
        ({"listen": "10.0.0.1:99999"}, "bad-port"),
        ({"advertise": "hub:0"}, "bad-port"),
        ({"store": "postgresql://db/hub"}, "bad-store"),
        ({"store": "hub.db"}, "bad-store"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, str], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        HubSettings.make(PATHS, **{"advertise": "hub", **wrong})  # type: ignore[arg-type]
    assert caught.value.code == code


def test_a_store_of_ones_own() -> None:
    assert HubSettings.make(PATHS, advertise="h", store="sqlite:/data/hub.db").store == Path("/data/hub.db")
