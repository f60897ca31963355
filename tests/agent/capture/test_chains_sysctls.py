"""Kernel settings that are said to break marked or transparent connections: inbound capture works with each of them."""

from itertools import product

import pytest

from meshagent.config.settings import RedirectMode
from meshagent.model.posture import Posture
from tests.agent.capture.stand import Connection, Stand
from tests.agent.capture.test_chains_arriving import backend, inbound_proxy, mode, wanted, way
from tests.agent.capture.test_chains_client_address import hand_over

pytestmark = pytest.mark.root

__all__ = ["backend", "mode", "way"]


def test_inbound_works_with_every_reverse_path_filter_and_with_marks_that_count_in_it(
    stand4: Stand, mode: RedirectMode
) -> None:
    """rp_filter and src_valid_mark exist for IPv4 only; wg-quick sets src_valid_mark to 1."""
    inbound_proxy(stand4, mode)
    stand4.serve(stand4.host, 8080, "app")
    stand4.capture(Posture.PERMISSIVE, config=wanted(mode))
    host, caller = stand4.own(stand4.host), stand4.own(stand4.peer)
    for rp_filter, valid_mark in product((0, 1, 2), (0, 1)):
        settings = [f"net.ipv4.conf.{where}.rp_filter={rp_filter}" for where in ("all", "eth0", "lo")]
        settings += [f"net.ipv4.conf.{where}.src_valid_mark={valid_mark}" for where in ("all", "eth0", "lo")]
        stand4.host.run(["sysctl", "-qw", *settings])
        with stand4.open(host, 8080, stand4.peer) as arriving:  # from outside to the proxy
            assert arriving.greeting == f"proxy {caller} {host} 8080", settings
            assert arriving.says(), settings
        with Connection(hand_over(stand4, caller, 8080)) as handed:  # from the proxy to the process, as its caller
            assert handed.greeting == f"app {caller} {host} 8080", settings
            assert handed.says(), settings
