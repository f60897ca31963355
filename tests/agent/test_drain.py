"""What leaving says about connections that it closes."""

from ipaddress import ip_address

from meshagent.agent.drain import describe
from meshagent.machine.sockets import Connection, Owner

ENVOY, REDIS_CLI = Owner(7, "envoy", "/envoy"), Owner(9, "redis-cli", "/usr/bin/redis-cli")


def connection(local: str, local_port: int, remote: str, remote_port: int, *owners: Owner) -> Connection:
    return Connection(ip_address(local), local_port, ip_address(remote), remote_port, 0, 0, owners)


def test_peers_are_named_by_address_and_programs_here_by_name_and_where_they_meant_to_go() -> None:
    found = [
        connection("10.0.0.1", 15008, "10.0.0.2", 4000, ENVOY),
        connection("10.0.0.1", 15008, "10.0.0.2", 4001, ENVOY),
        connection("127.0.0.1", 15001, "10.0.0.1", 5000, ENVOY),
        connection("10.0.0.1", 5000, "240.240.0.1", 6379, REDIS_CLI),
    ]
    assert describe(found, proxy=7) == [
        "2 connections from 10.0.0.2",
        "1 connection of redis-cli (pid 9) to 240.240.0.1 port 6379",
    ]


def test_connections_of_others_and_to_the_proxys_own_peers_are_not_its_clients() -> None:
    found = [
        connection("10.0.0.1", 22, "10.0.0.2", 4000, REDIS_CLI),
        connection("10.0.0.1", 41000, "10.0.0.2", 15008, ENVOY),
    ]
    assert describe(found, proxy=7) == []


def test_a_program_that_went_away_is_still_counted() -> None:
    found = [connection("127.0.0.1", 15001, "10.0.0.1", 5000, ENVOY)]
    assert describe(found, proxy=7) == ["1 connection of a program at 10.0.0.1"]
