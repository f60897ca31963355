"""Kept resources (canonical JSON, validated when applied) to what the registry and the snapshot read. Pure."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from meshagent.hub.state import (
    EntryPort,
    Labels,
    PeerAuthenticationView,
    ResourceViews,
    ServiceEntryView,
    WorkloadView,
)
from meshagent.hub.store.rows import ResourceRow
from meshagent.model.address import IPAddress, parse_ip
from meshagent.model.posture import PlaintextMode
from meshagent.model.service import ServiceProtocol


def views_of(rows: Iterable[ResourceRow]) -> ResourceViews:
    """``rows`` oldest first, so the views are."""
    entries: list[ServiceEntryView] = []
    workloads: list[WorkloadView] = []
    policies: list[PeerAuthenticationView] = []
    for row in rows:
        spec = json.loads(row.spec)
        if row.kind == "ServiceEntry":
            entries.append(_service_entry(row, spec))
        elif row.kind == "WorkloadEntry":
            workloads.append(_workload(row.namespace, row.name, spec, json.loads(row.labels)))
        elif row.kind == "PeerAuthentication":
            policies.append(_peer_authentication(row, spec))
    return ResourceViews(tuple(entries), tuple(workloads), tuple(policies))


def _service_entry(row: ResourceRow, spec: Mapping[str, Any]) -> ServiceEntryView:
    return ServiceEntryView(
        namespace=row.namespace,
        name=row.name,
        hosts=tuple(spec["hosts"]),
        ports=tuple(
            EntryPort(port["number"], ServiceProtocol(port["protocol"]), port["name"], port.get("targetPort", 0))
            for port in spec["ports"]
        ),
        addresses=tuple(_ip(text) for text in spec.get("addresses", ())),
        mesh=spec.get("location") == "MESH_INTERNAL",
        endpoints=tuple(
            _workload(row.namespace, f"{row.name}-{number}", endpoint)
            for number, endpoint in enumerate(spec.get("endpoints", ()))
        ),
        selector=_labels(spec.get("workloadSelector", {}).get("labels", {})),
        subject_alt_names=tuple(spec.get("subjectAltNames", ())),
    )


def _workload(
    namespace: str, name: str, spec: Mapping[str, Any], labels: Mapping[str, str] | None = None
) -> WorkloadView:
    """Selectors match a WorkloadEntry by its metadata's labels and its spec's, the spec's first (as Istio merges)."""
    return WorkloadView(
        namespace=namespace,
        name=name,
        address=_ip(spec["address"]),
        ports=tuple(sorted(spec.get("ports", {}).items())),
        labels=_labels({**(labels or {}), **spec.get("labels", {})}),
        locality=spec.get("locality", ""),
        weight=spec.get("weight") or 100,
        service_account=spec.get("serviceAccount") or "",
    )


def _peer_authentication(row: ResourceRow, spec: Mapping[str, Any]) -> PeerAuthenticationView:
    ports = spec.get("portLevelMtls", {})
    return PeerAuthenticationView(
        namespace=row.namespace,
        name=row.name,
        selector=_labels((spec.get("selector") or {}).get("matchLabels", {})),
        mode=_mode(spec.get("mtls")),
        port_modes=tuple(sorted((int(port), _mode(mtls)) for port, mtls in ports.items())),
    )


def _mode(mtls: Mapping[str, Any] | None) -> PlaintextMode | None:
    text = (mtls or {}).get("mode", "UNSET")
    return None if text == "UNSET" else PlaintextMode(text.lower())


def _labels(labels: Mapping[str, str]) -> Labels:
    return tuple(sorted(labels.items()))


def _ip(text: str) -> IPAddress:
    address = parse_ip(text)
    assert address is not None, "validated before it was kept"
    return address
