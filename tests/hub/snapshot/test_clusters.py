"""How a service is called: by tunnel, in plain text, or as Istio's sidecars want it."""

import json
from dataclasses import replace
from ipaddress import ip_address

import pytest

from meshagent.hub.snapshot.clusters import Way, way
from meshagent.hub.state import MUTUAL_TLS_LABEL, MeshEndpoint, MeshPort, MeshService
from meshagent.model.service import ServiceProtocol
from meshagent.protocol.types import CDS, EDS, LDS, RDS
from tests.hub.snapshot.meshes import DB1, MESH, OUTSIDE, account, endpoint, service
from tests.hub.snapshot.test_build import built, shown

OURS = endpoint(DB1, 3306, 3306)
LABELLED = replace(OURS, labels=(MUTUAL_TLS_LABEL,))
SIDECAR = MeshEndpoint(
    3306, 13306, "", (ip_address("10.9.9.9"),), str(account("legacy")), labels=(("app", "x"), MUTUAL_TLS_LABEL)
)
UNKNOWN = replace(SIDECAR, labels=())
PLAIN = replace(SIDECAR, spiffe_id="")


def offered(*endpoints: MeshEndpoint, protocol: ServiceProtocol = ServiceProtocol.MYSQL) -> MeshService:
    return service("db", 9, MeshPort(3306, protocol), *endpoints)


@pytest.mark.parametrize(
    ("endpoints", "expected", "called"),
    [
        ((OURS,), Way.TUNNEL, {("10.0.0.3", 15008)}),
        ((LABELLED,), Way.TUNNEL, {("10.0.0.3", 15008)}),
        ((UNKNOWN,), Way.TUNNEL, {("10.9.9.9", 15008)}),
        ((SIDECAR,), Way.SIDECAR, {("10.9.9.9", 13306)}),
        ((SIDECAR, LABELLED), Way.SIDECAR, {("10.9.9.9", 13306), ("10.0.0.3", 3306)}),
        ((SIDECAR, OURS), Way.TUNNEL, {("10.0.0.3", 15008)}),
        ((SIDECAR, PLAIN), Way.SIDECAR, {("10.9.9.9", 13306)}),
        ((PLAIN,), Way.PLAIN, {("10.9.9.9", 13306)}),
        ((), Way.TUNNEL, set()),
    ],
)
def test_each_endpoint_is_called_in_a_way_that_it_answers(
    endpoints: tuple[MeshEndpoint, ...], expected: Way, called: set[tuple[str, int]]
) -> None:
    made = offered(*endpoints)
    assert way(made) is expected
    assert {where(e) for e in told(made, EDS, "outbound|3306||db.default.mesh.internal")} == called


def test_outside_the_mesh_the_label_means_nothing() -> None:
    endpoints = tuple(replace(e, labels=(MUTUAL_TLS_LABEL,)) for e in OUTSIDE.endpoints)
    assert way(replace(OUTSIDE, endpoints=endpoints)) is Way.PLAIN


@pytest.mark.parametrize(
    ("protocol", "alpn"),
    [
        (ServiceProtocol.MYSQL, "istio"),
        (ServiceProtocol.HTTP, "istio-http/1.1"),
        (ServiceProtocol.GRPC, "istio-h2"),
    ],
)
def test_a_sidecar_is_told_the_service_by_sni_and_what_is_spoken_by_alpn(protocol: ServiceProtocol, alpn: str) -> None:
    snapshot = built(replace(MESH, services=(offered(SIDECAR, protocol=protocol),))).snapshot("web")
    cluster = shown(CDS, snapshot[CDS]["outbound|3306||db.default.mesh.internal"])
    tls = cluster["transport_socket"]["typed_config"]
    assert tls["sni"] == "outbound_.3306_._.db.default.mesh.internal"
    assert tls["common_tls_context"]["alpn_protocols"] == [alpn]
    assert str(account("legacy")) in json.dumps(tls), "and nobody else is accepted"
    everything = json.dumps([shown(t, e) for t in (LDS, RDS) for e in snapshot[t].values()])
    assert "tunneling_config" not in everything and "x-meshagent-service" not in everything


def told(made: MeshService, type_url: str, name: str) -> list[dict[str, object]]:
    entry = built(replace(MESH, services=(made,))).snapshot("web")[type_url][name]
    return [e["endpoint"] for group in shown(type_url, entry).get("endpoints", ()) for e in group["lb_endpoints"]]


def where(found: dict[str, object]) -> tuple[str, int]:
    address = found["address"]["socket_address"]  # type: ignore[index]
    return address["address"], address["port_value"]
