"""What is valid and will still surprise its author. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from meshagent.hub.resources.checked import Checked, Problem
from meshagent.hub.resources.yamltext import Document, Path
from meshagent.hub.state import MUTUAL_TLS_LABEL
from meshagent.model.service import ServiceProtocol


def of(resource: Checked, document: Document, root_namespace: str) -> Iterator[Problem]:
    """The warnings about one valid resource."""
    found = {"ServiceEntry": _service_entry, "WorkloadEntry": _workload_entry}.get(resource.kind)
    pairs = found(resource) if found else _peer_authentication(resource, root_namespace)
    for path, message in pairs:
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
        yield Problem(resource.file, document.line_of(path), text.removeprefix("."), message)


Found = Iterator[tuple[Path, str]]


def _service_entry(resource: Checked) -> Found:
    spec = resource.spec
    internal = spec.get("location") == "MESH_INTERNAL"
    if spec.get("addresses") and not internal:
        yield ("spec", "addresses"), "without location: MESH_INTERNAL these addresses are reached without mutual TLS"
    elif not internal:
        yield ("spec",), "location is MESH_EXTERNAL (the default): its endpoints are reached without mutual TLS"
    if not spec.get("endpoints") and not spec.get("workloadSelector"):
        yield ("spec",), "neither endpoints nor workloadSelector: nothing serves it"
    for number, endpoint in enumerate(spec.get("endpoints", ())):
        path = ("spec", "endpoints", number)
        if internal and not endpoint.get("serviceAccount"):
            yield path, "without serviceAccount this endpoint is reached in plain text"
        elif internal and _own_port_mtls(endpoint):
            yield from ((path, text) for text in _waits(spec["ports"]))
    if 22 in [port["number"] for port in spec["ports"]] and spec.get("addresses"):
        yield ("spec", "ports"), "hosts refuse claims on port 22, so that nobody is locked out"


def _own_port_mtls(workload: Mapping[str, Any]) -> bool:
    name, value = MUTUAL_TLS_LABEL
    return bool(workload.get("labels", {}).get(name) == value)


def _waits(ports: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Mutual TLS and plain text on one port are told apart by the client's first bytes."""
    for port in ports:
        if port["protocol"] in (ServiceProtocol.MYSQL, ServiceProtocol.TCP):
            who = f"port {port['number']}: where its server speaks first, plain-text callers of a host of ours"
            yield f"{who} wait 3 s for each connection; PeerAuthentication STRICT refuses them instead"


def _workload_entry(resource: Checked) -> Found:
    if not resource.spec.get("serviceAccount"):
        yield ("spec",), "without serviceAccount this workload is reached in plain text"


def _peer_authentication(resource: Checked, root_namespace: str) -> Found:
    if resource.namespace == root_namespace and resource.spec.get("selector"):
        yield ("spec", "selector"), f"a selector in the root namespace ({root_namespace}) selects nothing"
    modes = [resource.spec.get("mtls"), *resource.spec.get("portLevelMtls", {}).values()]
    if not any(mode and mode.get("mode", "UNSET") != "UNSET" for mode in modes):
        yield ("spec",), "no mode is set: it changes nothing"
