"""Whole snapshots: what each host is told (as goldens), what is shared, what a change costs."""

import importlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from meshagent.hub.snapshot.build import Builder
from meshagent.hub.state import MeshState, PeerAuthenticationView
from meshagent.model.posture import PlaintextMode, Posture
from meshagent.protocol.entry import Entry
from meshagent.protocol.types import CDS, EDS, HOST_POLICY, LDS, NDS, RDS, short_name
from tests.hub.snapshot.meshes import CACHE, DB1, DB2, MESH, MYSQL, WEB

#: Set to write the goldens anew: MESHAGENT_GOLDEN=write pytest tests/hub/snapshot
_WRITE = os.environ.get("MESHAGENT_GOLDEN") == "write"
_GOLDEN = Path(__file__).parents[2] / "golden" / "envoy"

_MESSAGES = {
    CDS: ("envoy.config.cluster.v3.cluster_pb2", "Cluster"),
    EDS: ("envoy.config.endpoint.v3.endpoint_pb2", "ClusterLoadAssignment"),
    LDS: ("envoy.config.listener.v3.listener_pb2", "Listener"),
    RDS: ("envoy.config.route.v3.route_pb2", "RouteConfiguration"),
    NDS: ("meshagent.protocol.pb.istio_nds_pb2", "NameTable"),
    HOST_POLICY: ("meshagent.protocol.pb.meshagent_v1_pb2", "HostPolicy"),
}
_INSIDE = (
    "envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2",
    "envoy.extensions.filters.listener.original_dst.v3.original_dst_pb2",
    "envoy.extensions.filters.listener.original_src.v3.original_src_pb2",
    "envoy.extensions.filters.listener.tls_inspector.v3.tls_inspector_pb2",
    "envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2",
    "envoy.extensions.filters.http.router.v3.router_pb2",
    "envoy.extensions.filters.http.rbac.v3.rbac_pb2",
    "envoy.extensions.filters.http.original_src.v3.original_src_pb2",
    "envoy.extensions.filters.http.set_filter_state.v3.set_filter_state_pb2",
    "envoy.extensions.transport_sockets.tls.v3.tls_pb2",
    "envoy.extensions.upstreams.http.v3.http_protocol_options_pb2",
    "envoy.extensions.retry.host.previous_hosts.v3.previous_hosts_pb2",
)


def built(state: MeshState = MESH) -> Builder:
    builder = Builder()
    builder.update(state)
    return builder


def shown(type_url: str, entry: Entry) -> Any:
    for module in _INSIDE:
        importlib.import_module(module)
    module, name = _MESSAGES[type_url]
    message = getattr(importlib.import_module(module), name).FromString(entry.body)
    return MessageToDict(message, preserving_proto_field_name=True)


@pytest.mark.parametrize("host", ["web", "cache", "db2"])
@pytest.mark.parametrize("type_url", _MESSAGES, ids=short_name)
def test_what_a_host_is_told_is_what_an_operator_approved(host: str, type_url: str) -> None:
    entries = built().snapshot(host)[type_url]
    text = (
        json.dumps({name: shown(type_url, entries[name]) for name in sorted(entries)}, indent=1, sort_keys=True) + "\n"
    )
    golden = _GOLDEN / f"{host}-{short_name(type_url)}.json"
    if _WRITE:
        golden.write_text(text)
    assert json.loads(text) == json.loads(golden.read_text())


def test_every_reference_leads_to_something_in_the_same_snapshot() -> None:
    for host in MESH.hosts:
        snapshot = built().snapshot(host.name)
        listeners = json.dumps([shown(LDS, e) for e in snapshot[LDS].values()])
        routes = json.dumps([shown(RDS, e) for e in snapshot[RDS].values()])
        clusters = {name: shown(CDS, e) for name, e in snapshot[CDS].items()}
        assert _values(listeners, "cluster") | _values(routes, "cluster") <= set(clusters) | {""}
        assert _values(listeners, "route_config_name") <= set(snapshot[RDS])
        assert {n for n, c in clusters.items() if c["type"] == "EDS"} == set(snapshot[EDS])


def _values(text: str, key: str) -> set[str]:
    found: set[str] = set()
    json.loads(text, object_hook=lambda d: found.add(d[key]) if isinstance(d.get(key), str) else d)
    return found


def test_hosts_share_what_is_the_same_for_them() -> None:
    builder = built(replace(MESH, hosts=(*MESH.hosts, replace(WEB, name="a"), replace(WEB, name="b"))))
    a, b, web = (builder.snapshot(name) for name in ("a", "b", "web"))
    assert all(a[t] is b[t] for t in (CDS, EDS, LDS, RDS, NDS))
    assert web[EDS] is a[EDS] and web[LDS] is a[LDS] and web[CDS] is not a[CDS]
    assert all(web[CDS][name] is entry for name, entry in a[CDS].items())


def test_a_change_of_one_service_leaves_the_bytes_of_all_others() -> None:
    builder = built()
    before = builder.snapshot("web")
    worse = replace(MYSQL, endpoints=tuple(replace(e, healthy=False) for e in MYSQL.endpoints))
    builder.update(replace(MESH, services=tuple(worse if s is MYSQL else replace(s) for s in MESH.services)))
    after = builder.snapshot("web")
    assert [t for t in after if after[t] is not before[t]] == [EDS]
    assert [n for n in after[EDS] if after[EDS][n] is not before[EDS][n]] == ["outbound|3306||db.default.mesh.internal"]


def test_hosts_that_may_be_told_something_else_are_named_and_no_others() -> None:
    builder = built()
    names = {host.name for host in MESH.hosts}
    before = {name: builder.snapshot(name) for name in names}
    away = tuple(replace(host, connected=not host.connected) for host in MESH.hosts)
    assert not builder.update(replace(MESH, hosts=away))
    assert not builder.update(replace(MESH, services=tuple(map(replace, MESH.services))))
    moved = tuple(replace(h, posture=Posture.OUTBOUND) if h.name == "web" else h for h in MESH.hosts)
    assert set(builder.update(replace(MESH, hosts=moved))) == {"web"}
    assert {name for name in names if builder.snapshot(name) is not before[name]} == {"web"}
    assert set(builder.update(replace(MESH, hosts=tuple(h for h in MESH.hosts if h.name != "db2")))) >= {"db2", "web"}
    assert builder.update(replace(MESH, services=MESH.services[1:]))


def test_an_equal_state_gives_the_same_objects() -> None:
    builder = built()
    before = builder.snapshot("cache")
    builder.update(replace(MESH, services=tuple(replace(s) for s in MESH.services)))
    assert builder.snapshot("cache") is before


def test_the_same_state_gives_the_same_versions_in_another_process_of_the_hub() -> None:
    assert built().snapshot("cache") == built().snapshot("cache")


def test_a_host_without_ipv6_gets_nothing_that_it_could_not_bind_or_reach() -> None:
    snapshot = built().snapshot(DB2.name)
    assert not any(":" in shown(LDS, e)["address"]["socket_address"]["address"] for e in snapshot[LDS].values())
    table = shown(NDS, snapshot[NDS]["nametable"])["table"]
    assert table["db.default.mesh.internal"]["ips"] == ["240.240.0.3"]


@pytest.mark.parametrize("posture", [Posture.OBSERVE, Posture.OUTBOUND])
def test_a_host_that_lets_nobody_in_has_no_door(posture: Posture) -> None:
    snapshot = built(replace(MESH, hosts=(replace(CACHE, posture=posture),))).snapshot("cache")
    assert not {"hbone", "hbone6"} & set(snapshot[LDS]) and not {"hbone", "hbone6"} & set(snapshot[RDS])
    assert not [name for name in snapshot[CDS] if name.startswith("inbound")]


def test_an_unknown_host_is_told_nothing_rather_than_to_drop_everything() -> None:
    assert built().snapshot("stranger") == {}


def test_two_services_that_claim_one_address_do_not_break_each_other() -> None:
    rival = replace(MYSQL, host="rival.default.mesh.internal", name="rival", virtual4=WEB.addresses[0])  # type: ignore[arg-type]
    snapshot = built(replace(MESH, services=(*MESH.services, rival))).snapshot("web")
    winner = shown(LDS, snapshot[LDS]["192.0.2.7_3306"])
    assert "rival" not in json.dumps(winner)


def test_a_strict_policy_is_told_for_the_port_the_process_listens_on() -> None:
    policy = PeerAuthenticationView("default", "strict", mode=PlaintextMode.STRICT)
    snapshot = built(replace(MESH, peer_authentications=(policy,))).snapshot("web")
    assert shown(HOST_POLICY, snapshot[HOST_POLICY]["web"]) == {"ports": [{"port": 8080, "strict": True}]}
    assert "strict" not in json.dumps(shown(HOST_POLICY, built().snapshot("web")[HOST_POLICY]["web"]))


def test_a_removed_service_takes_its_resources_along() -> None:
    builder = built()
    builder.update(replace(MESH, services=tuple(s for s in MESH.services if s is not MYSQL)))
    text = " ".join(name for entries in builder.snapshot("db1").values() for name in entries)
    assert "3306" not in text and DB1.name in text
