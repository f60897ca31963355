"""Names of the mesh: what a service is called, and the table a host answers from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from meshagent.model.address import IPAddress
from meshagent.model.errors import UsageError

DEFAULT_ZONE = "mesh.internal"
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)  # RFC 1123 section 2.1


def is_label(text: str) -> bool:
    """True for one lower-case DNS label (RFC 1123 section 2.1)."""
    return _LABEL.fullmatch(text) is not None


def is_dns_name(text: str) -> bool:
    """True for lower-case labels joined by dots, at most 253 octets (RFC 1035 section 2.3.4)."""
    return 0 < len(text) <= 253 and all(is_label(part) for part in text.split("."))


def require_label(text: str, what: str) -> str:
    """``text`` itself, or ``UsageError`` that names ``what``."""
    if not is_label(text):
        raise UsageError(
            "bad-name", f"{what} {text!r} is not a DNS label", hint="use a-z, 0-9 and '-', at most 63 characters"
        )
    return text


def service_host(name: str, namespace: str, zone: str = DEFAULT_ZONE) -> str:
    """``cache.default.mesh.internal``: the host name of a service."""
    return f"{name}.{namespace}.{zone}"


@dataclass(frozen=True, slots=True)
class NameEntry:
    """One host name of the control plane's name table (Istio's NDS NameInfo)."""

    addresses: tuple[IPAddress, ...]
    registry: str = ""
    shortname: str = ""
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class NameTable:
    """Host name (lower case, no trailing dot) -> entry.

    ``known``: this is what the control plane said; else nothing is known yet, so nothing can be said not to exist.
    """

    entries: Mapping[str, NameEntry] = field(default_factory=dict)
    known: bool = True
