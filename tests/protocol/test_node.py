"""Node ids and metadata as istiod reads them."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.model.errors import UsageError
from meshagent.protocol.node import NodeId, Workload, build_node, metadata_text, parse_node_id

TEXT = "sidecar~10.0.0.7~db.eu.default~default.svc.mesh.internal"


def test_an_id_has_istios_form_and_is_parsed_back() -> None:
    node_id = NodeId(ip_address("10.0.0.7"), "db.eu", "default")
    assert str(node_id) == TEXT
    assert parse_node_id(TEXT) == node_id


def test_an_ipv6_address_is_fine() -> None:
    text = "sidecar~2001:db8::7~db.default~default.svc.cluster.local"
    assert str(parse_node_id(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT + "~x",
        TEXT + "\n",
        TEXT.replace("sidecar", "router"),
        TEXT.replace("10.0.0.7", "10.0.0"),
        TEXT.replace("10.0.0.7", "fe80::1%eth0"),
        TEXT.replace("~default.", "~other."),
        TEXT.replace("db.eu.", ""),
        TEXT.replace("db.eu", "d b"),
        TEXT.replace("db.eu", "x" * 300),
        TEXT.replace("internal", "Int_ernal"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_node_id(text)
    assert caught.value.code == "bad-node-id"


@given(st.text(max_size=80))
def test_no_text_crashes_the_parser(text: str) -> None:
    for candidate in (text, f"sidecar~10.0.0.1~{text}~default.svc.x"):
        try:
            assert str(parse_node_id(candidate)) == candidate
        except UsageError:
            continue


def test_metadata_holds_what_istiod_demands_and_booleans_are_strings() -> None:
    workload = Workload(
        NodeId(ip_address("10.0.0.7"), "db", "default"),
        service_account="db",
        addresses=(ip_address("10.0.0.7"), ip_address("2001:db8::7")),
        labels={"app": "db"},
        region="eu",
        zone="dc1",
        extra={"AUTO_REGISTER_GROUP": "dbs", "PROXY_CONFIG": {"holdApplication": True}},
    )
    node = build_node(workload)
    assert node.id == str(workload.node_id)
    assert (node.locality.region, node.locality.zone) == ("eu", "dc1")
    assert metadata_text(node, "INSTANCE_IPS") == "10.0.0.7,2001:db8::7"
    assert metadata_text(node, "DNS_CAPTURE") == "true"
    assert metadata_text(node, "SERVICE_ACCOUNT") == metadata_text(node, "NAME") == "db"
    assert metadata_text(node, "LABELS") == ""  # a struct, not a string
    assert node.metadata["LABELS"]["app"] == "db"
    assert node.metadata["PROXY_CONFIG"]["holdApplication"] == "true"
    demanded = (
        "NAMESPACE SERVICE_ACCOUNT NAME INSTANCE_IPS LABELS CLUSTER_ID MESH_ID NETWORK ISTIO_VERSION WORKLOAD_NAME"
    )
    assert {*demanded.split(), "INTERCEPTION_MODE", "AUTO_REGISTER_GROUP"} <= node.metadata.fields.keys()
