"""The kinds and fields the hub takes, under Istio's names; whatever is not here is an error, never ignored.

Field semantics are Istio's (networking.istio.io, security.istio.io reference); what the hub does not do yet is refused
with the reason, so that nobody believes in a setting that has no effect.
"""

from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from meshagent.model.address import VIRTUAL4, VIRTUAL6, IPAddress, parse_ip
from meshagent.model.identity import parse_spiffe_id
from meshagent.model.names import is_dns_name, is_label
from meshagent.model.service import ServiceProtocol

#: Istio's spellings beside our own names; HTTPS is TLS the proxy doesn't terminate.
PROTOCOLS = {p.value.upper(): p for p in ServiceProtocol} | {"HTTPS": ServiceProtocol.TLS}

#: Fields Istio has and the hub refuses by name, with what to do instead.
UNSUPPORTED = {
    "exportTo": "every service is visible everywhere: leave exportTo out",
    "network": "all hosts share one network: leave network out",
    "status": "status is written by control planes, not applied: leave it out",
    "annotations": "annotations have no effect here: leave them out",
    "targetRefs": "workloads are chosen by selector: leave targetRefs out",
}


def _name(text: str) -> str:
    if not is_dns_name(text):
        raise ValueError("must be a name of a-z, 0-9, '-' and '.'")
    return text


def _label(text: str) -> str:
    if not is_label(text):
        raise ValueError("must be one DNS label: a-z, 0-9 and '-', at most 63 characters")
    return text


def _host(text: str) -> str:
    if "*" in text:
        raise ValueError("wildcard hosts are not supported: name each host")
    return _name(text)


def _protocol(text: Any) -> Any:
    if not isinstance(text, str) or text.upper() not in PROTOCOLS:
        raise ValueError(f"must be one of {', '.join(sorted(PROTOCOLS))}")
    return PROTOCOLS[text.upper()].value


def _workload_address(text: str) -> str:
    address = parse_ip(text)
    if address is None:
        raise ValueError("must be an IP address: names and sockets are not supported")
    _refuse_special(address)
    return str(address)


def _claimed_address(text: str) -> str:
    try:
        network = ip_network(text)
    except ValueError:
        raise ValueError("must be an IP address") from None
    if network.num_addresses != 1:
        raise ValueError("ranges are not supported: list the addresses one by one")
    address: IPAddress = network.network_address
    _refuse_special(address)
    return str(address)


def _refuse_special(address: IPv4Address | IPv6Address) -> None:
    if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local:
        raise ValueError("must not be a loopback, link-local, multicast or unspecified address")
    if address in (VIRTUAL4 if address.version == 4 else VIRTUAL6):
        raise ValueError("must not be of the ranges virtual addresses come from")


def _spiffe(text: str) -> str:
    try:
        return str(parse_spiffe_id(text))
    except Exception as error:
        raise ValueError("must be spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT") from error


def _static(text: str) -> str:
    if text != "STATIC":
        raise ValueError("only STATIC is supported: list endpoints, or select workloads")
    return text


Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, AfterValidator(_name)]
Label = Annotated[str, AfterValidator(_label)]
LabelText = Annotated[str, Field(max_length=317)]
Labels = Annotated[dict[LabelText, LabelText], Field(max_length=64)]


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, alias_generator=to_camel, hide_input_in_errors=True
    )


class Metadata(_Model):
    name: Name
    namespace: Label | None = None
    labels: Labels = {}


class Selector(_Model):
    """Istio's WorkloadSelector of networking: ``labels``."""

    labels: Annotated[Labels, Field(min_length=1)]


class MatchSelector(_Model):
    """Istio's WorkloadSelector of security: ``matchLabels``."""

    match_labels: Annotated[Labels, Field(min_length=1)]


class EntryPort(_Model):
    number: Port
    protocol: Annotated[str, BeforeValidator(_protocol)]
    name: Label
    target_port: Port | None = None


class Workload(_Model):
    """A WorkloadEntry's spec, and an endpoint of a ServiceEntry."""

    address: Annotated[str, AfterValidator(_workload_address)]
    ports: Annotated[dict[Label, Port], Field(max_length=64)] = {}
    labels: Labels = {}
    locality: Annotated[str, Field(max_length=253)] = ""
    weight: Annotated[int, Field(ge=0, le=10_000)] | None = None
    service_account: (
        Annotated[str, Field(max_length=253, pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9._-]*[a-zA-Z0-9])?$")] | None
    ) = None


class ServiceEntrySpec(_Model):
    hosts: Annotated[list[Annotated[str, AfterValidator(_host)]], Field(min_length=1, max_length=64)]
    addresses: Annotated[list[Annotated[str, AfterValidator(_claimed_address)]], Field(max_length=256)] = []
    ports: Annotated[list[EntryPort], Field(min_length=1, max_length=64)]
    location: Literal["MESH_EXTERNAL", "MESH_INTERNAL"] = "MESH_EXTERNAL"
    resolution: Annotated[str, AfterValidator(_static)]
    endpoints: Annotated[list[Workload], Field(max_length=1_000)] = []
    workload_selector: Selector | None = None
    subject_alt_names: Annotated[list[Annotated[str, AfterValidator(_spiffe)]], Field(max_length=64)] = []

    @model_validator(mode="after")
    def _consistent(self) -> "ServiceEntrySpec":
        if self.endpoints and self.workload_selector:
            raise ValueError("endpoints and workloadSelector exclude each other")
        for what in ("number", "name"):
            values = [getattr(port, what) for port in self.ports]
            if len(set(values)) != len(values):
                raise ValueError(f"two ports have the same {what}")
        return self


Mode = Literal["UNSET", "PERMISSIVE", "STRICT"]


class Mtls(_Model):
    mode: Mode = "UNSET"


PortKey = Annotated[str, Field(pattern=r"^[0-9]{1,5}$")]


class PeerAuthenticationSpec(_Model):
    selector: MatchSelector | None = None
    mtls: Mtls | None = None
    port_level_mtls: Annotated[dict[PortKey, Mtls], Field(max_length=64)] = {}

    @model_validator(mode="after")
    def _consistent(self) -> "PeerAuthenticationSpec":
        if self.port_level_mtls and not self.selector:
            raise ValueError("portLevelMtls needs a selector: ports are the workload's")
        if not all(1 <= int(port) <= 65535 for port in self.port_level_mtls):
            raise ValueError("portLevelMtls is keyed by workload port, 1 to 65535")
        return self


class _Resource(_Model):
    api_version: str
    kind: str
    metadata: Metadata


class ServiceEntry(_Resource):
    spec: ServiceEntrySpec


class WorkloadEntry(_Resource):
    spec: Workload


class PeerAuthentication(_Resource):
    spec: PeerAuthenticationSpec = PeerAuthenticationSpec()


_NETWORKING = tuple(f"networking.istio.io/{v}" for v in ("v1", "v1beta1", "v1alpha3"))
_SECURITY = tuple(f"security.istio.io/{v}" for v in ("v1", "v1beta1"))

#: kind -> its model and the API versions it is accepted under.
KINDS: dict[str, tuple[type[_Resource], tuple[str, ...]]] = {
    "ServiceEntry": (ServiceEntry, _NETWORKING),
    "WorkloadEntry": (WorkloadEntry, _NETWORKING),
    "PeerAuthentication": (PeerAuthentication, _SECURITY),
}
