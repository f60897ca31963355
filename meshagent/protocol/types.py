"""Resource types of ADS: their URLs, the order they are published in, and the bounds both ends keep.

Order: make before break (xDS protocol, "Eventual consistency considerations"): what is referred to comes before
what refers to it, and goes after it.
"""

from meshagent.model.errors import MeshagentError

PREFIX = "type.googleapis.com/"

CDS = PREFIX + "envoy.config.cluster.v3.Cluster"
EDS = PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LDS = PREFIX + "envoy.config.listener.v3.Listener"
RDS = PREFIX + "envoy.config.route.v3.RouteConfiguration"
SDS = PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
NDS = PREFIX + "istio.networking.nds.v1.NameTable"
PCDS = PREFIX + "istio.mesh.v1alpha1.ProxyConfig"
HEALTH = PREFIX + "istio.v1.HealthInformation"
HOST_POLICY = PREFIX + "meshagent.v1.HostPolicy"

#: Additions go out in this order; types that are not listed follow, by name.
PUBLISH_ORDER = (CDS, EDS, LDS, RDS, SDS, NDS, HOST_POLICY)

#: Removals that wait until every addition is out, referrers first: a cluster goes after the last route to it.
REMOVE_LAST = (EDS, CDS)

#: Types that refer to each other: while one of them waits for the client, the later ones wait too.
CHAIN = frozenset((CDS, EDS, LDS, RDS))

#: Types for which an empty first subscription is not the wildcard but simply "nothing yet" (a proxy without
#: routes asks for none). ``*`` is the wildcard for every type.
NAMED_ONLY = frozenset((EDS, RDS, SDS))

WILDCARD = "*"

#: istiod sends its one name table and its one proxy configuration without a name; we give them one.
SINGLETON_NAMES = {NDS: "nametable", PCDS: "proxyconfig"}

#: Bounds against a broken or hostile other end. A mesh of 10,000 services needs about 20,000 names per type.
MAX_NAMES = 100_000
MAX_NAME_BYTES = 2_048
MAX_TYPES = 32
MAX_NONCE_BYTES = 256
#: A mesh of 1,000 services is 1.1 MB, so one of 10,000 has five times what it needs; held and still being judged.
MAX_HELD_BYTES = 64 << 20


class ProtocolError(MeshagentError):
    """The other end broke the ADS protocol or a bound: the stream is to be closed, what is held stays valid."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__("protocol-violation", message, hint=hint)


def publish_rank(type_url: str) -> tuple[int, str]:
    """Sort key that puts types into publish order."""
    known = PUBLISH_ORDER.index(type_url) if type_url in PUBLISH_ORDER else len(PUBLISH_ORDER)
    return known, type_url


def short_name(type_url: str) -> str:
    """``Cluster`` for the cluster type's URL: for logs and messages to people."""
    return type_url.rpartition(".")[2][:80] or "?"
