"""A small mesh for the tests of the snapshot: one of everything, with values a reader can tell apart."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

from meshagent.hub.state import HostView, MeshEndpoint, MeshPort, MeshService, MeshState
from meshagent.model.identity import SpiffeId
from meshagent.model.service import ServiceProtocol


def account(name: str) -> SpiffeId:
    return SpiffeId("mesh.internal", "default", name)


def host(name: str, number: int, *, ipv6: bool = True) -> HostView:
    addresses = (ip_address(f"10.0.0.{number}"), *((ip_address(f"fd00::{number}"),) if ipv6 else ()))
    return HostView(name, "default", account(name), addresses, connected=True)


def endpoint(where: HostView, port: int, target_port: int, target_address: str = "::") -> MeshEndpoint:
    return MeshEndpoint(
        port, target_port, where.name, where.addresses, str(where.spiffe_id), target_address, labels=(("app", "x"),)
    )


def service(name: str, number: int, port: MeshPort, *endpoints: MeshEndpoint) -> MeshService:
    return MeshService(
        host=f"{name}.default.mesh.internal",
        name=name,
        namespace="default",
        ports=(port,),
        virtual4=IPv4Address(f"240.240.0.{number}"),
        virtual6=IPv6Address(f"2001:2::{number}"),
        service_accounts=tuple(sorted({e.spiffe_id for e in endpoints})),
        endpoints=endpoints,
    )


WEB, CACHE, DB1, DB2 = host("web", 1), host("cache", 2), host("db1", 3), host("db2", 4, ipv6=False)

ORDERS = service("orders", 1, MeshPort(80, ServiceProtocol.HTTP), endpoint(WEB, 80, 8080))
REDIS = service("cache", 2, MeshPort(6379, ServiceProtocol.REDIS), endpoint(CACHE, 6379, 6379, "127.0.0.1"))
MYSQL = replace(
    service("db", 3, MeshPort(3306, ServiceProtocol.MYSQL), endpoint(DB1, 3306, 3306), endpoint(DB2, 3306, 3306)),
    claimed=(ip_address("192.0.2.7"),),
)
OUTSIDE = replace(
    service("api", 4, MeshPort(443, ServiceProtocol.TLS)),
    host="api.example.com",
    mtls=False,
    endpoints=(MeshEndpoint(443, 8443, "", (ip_address("198.51.100.9"),), ""),),
)

MESH = MeshState(services=(ORDERS, REDIS, MYSQL, OUTSIDE), hosts=(CACHE, DB1, DB2, WEB))
