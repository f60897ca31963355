"""Who a proxy says it is: Istio's node id and the metadata istiod and the hub read from the first request.

Facts: the id has exactly four ``~`` parts, the second a valid IP address; booleans in metadata are JSON *strings*.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from envoy.config.core.v3.base_pb2 import Locality, Node
from google.protobuf.struct_pb2 import Struct

from meshagent.model.address import IPAddress, parse_ip
from meshagent.model.errors import UsageError
from meshagent.model.names import DEFAULT_ZONE, is_dns_name

#: What metadata values may be; booleans become "true" and "false", mappings become nested structs.
MetadataValue = str | bool | int | float | Mapping[str, "MetadataValue"]

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", re.ASCII)
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class NodeId:
    """``sidecar~<ip>~<name>.<namespace>~<namespace>.svc.<domain>``; ``name`` may hold dots, ``namespace`` not."""

    ip: IPAddress
    name: str
    namespace: str
    domain: str = DEFAULT_ZONE

    def __post_init__(self) -> None:
        if not (_NAME.fullmatch(self.name) and _NAMESPACE.fullmatch(self.namespace) and is_dns_name(self.domain)):
            raise _bad(f"{self.name}.{self.namespace} in {self.domain}")

    def __str__(self) -> str:
        return f"sidecar~{self.ip}~{self.name}.{self.namespace}~{self.namespace}.svc.{self.domain}"


def parse_node_id(text: str) -> NodeId:
    """The inverse of ``str``; raises ``UsageError`` (code ``bad-node-id``) for anything else."""
    parts = text.split("~") if len(text) <= 1_024 else []
    if len(parts) != 4 or parts[0] != "sidecar":
        raise _bad(text)
    ip = parse_ip(parts[1])
    name, dot, namespace = parts[2].rpartition(".")
    prefix = f"{namespace}.svc."
    if ip is None or not dot or not parts[3].startswith(prefix):
        raise _bad(text)
    return NodeId(ip, name, namespace, parts[3].removeprefix(prefix))


def _bad(text: str) -> UsageError:
    return UsageError("bad-node-id", f"{text[:200]!r} is not sidecar~IP~NAME.NAMESPACE~NAMESPACE.svc.DOMAIN")


@dataclass(frozen=True, slots=True)
class Workload:
    """What the node metadata of a host is made from. ``addresses`` preferred first; ``labels`` of the workload.

    ``extra`` adds or replaces keys (AUTO_REGISTER_GROUP, WORKLOAD_ENTRY, PROXY_CONFIG …).
    """

    node_id: NodeId
    service_account: str
    addresses: tuple[IPAddress, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    cluster_id: str = "Kubernetes"
    mesh_id: str = ""
    network: str = ""
    istio_version: str = "1.32.0"
    agent_version: str = ""
    region: str = ""
    zone: str = ""
    extra: Mapping[str, MetadataValue] = field(default_factory=dict)


def metadata(workload: Workload) -> Struct:
    """The minimum istiod wants of a VM: NAMESPACE and SERVICE_ACCOUNT must equal the certificate's."""
    addresses = workload.addresses or (workload.node_id.ip,)
    values: dict[str, MetadataValue] = {
        "NAME": workload.node_id.name,
        "NAMESPACE": workload.node_id.namespace,
        "SERVICE_ACCOUNT": workload.service_account,
        "WORKLOAD_NAME": workload.node_id.name,
        "INSTANCE_IPS": ",".join(str(address) for address in addresses),
        "LABELS": dict(workload.labels),
        "CLUSTER_ID": workload.cluster_id,
        "MESH_ID": workload.mesh_id or workload.node_id.domain,
        "NETWORK": workload.network,
        "ISTIO_VERSION": workload.istio_version,
        "INTERCEPTION_MODE": "REDIRECT",
        "PROXY_CONFIG": {},
        "DNS_CAPTURE": True,
        "MESHAGENT_VERSION": workload.agent_version,
        **workload.extra,
    }
    struct = Struct()
    struct.update({key: _plain(value) for key, value in values.items()})
    return struct


def build_node(workload: Workload) -> Node:
    """The ``Node`` message of a first request."""
    return Node(
        id=str(workload.node_id),
        cluster=f"{workload.node_id.name}.{workload.node_id.namespace}",
        metadata=metadata(workload),
        locality=Locality(region=workload.region, zone=workload.zone),
        user_agent_name="meshagent",
    )


def metadata_text(node: Node, key: str) -> str:
    """One string of a node's metadata, '' when it is missing or not a string."""
    value = node.metadata.fields.get(key)
    return value.string_value if value is not None and value.HasField("string_value") else ""


def _plain(value: MetadataValue) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return value
