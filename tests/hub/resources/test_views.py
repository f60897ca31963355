"""What was kept is what the registry reads."""

import json
from ipaddress import ip_address

from meshagent.hub.resources.checked import SourceText
from meshagent.hub.resources.validate import validate
from meshagent.hub.resources.views import views_of
from meshagent.hub.state import EntryPort
from meshagent.hub.store.rows import ResourceRow
from meshagent.model.posture import PlaintextMode
from meshagent.model.service import ServiceProtocol
from tests.hub.hosts import NOW

TEXT = """\
apiVersion: networking.istio.io/v1beta1
kind: ServiceEntry
metadata: {name: legacy}
spec:
  hosts: [legacy.example.com]
  addresses: [10.1.2.3, "2001:db8::1"]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: web, protocol: HTTPS, targetPort: 8443}]
  endpoints: [{address: 10.0.0.1, ports: {web: 9443}, weight: 5, serviceAccount: web, locality: eu/dc1}]
  subjectAltNames: [spiffe://mesh.internal/ns/default/sa/web]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: w, labels: {app: meta, tier: a}}
spec: {address: 10.0.0.2, labels: {app: spec}}
---
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: p}
spec:
  selector: {matchLabels: {app: db}}
  mtls: {mode: PERMISSIVE}
  portLevelMtls: {3306: {mode: STRICT}, 80: {}}
"""


def test_every_field_arrives() -> None:
    report = validate([SourceText("-", TEXT)])
    assert not report.errors
    rows = [
        ResourceRow(r.kind, r.namespace, r.name, r.api_version, json.dumps(r.spec), json.dumps(r.labels), 1, NOW, NOW)
        for r in report.resources
    ]
    views = views_of(rows)
    (entry,) = views.service_entries
    assert entry.mesh and entry.addresses == (ip_address("10.1.2.3"), ip_address("2001:db8::1"))
    assert entry.ports == (EntryPort(80, ServiceProtocol.TLS, "web", 8443),)
    (endpoint,) = entry.endpoints
    assert (endpoint.weight, endpoint.service_account, endpoint.locality) == (5, "web", "eu/dc1")
    assert endpoint.ports == (("web", 9443),) and endpoint.namespace == "default"
    assert entry.subject_alt_names == ("spiffe://mesh.internal/ns/default/sa/web",)
    (workload,) = views.workload_entries
    assert workload.labels == (("app", "spec"), ("tier", "a")) and workload.service_account == ""
    (policy,) = views.peer_authentications
    assert policy.selector == (("app", "db"),) and policy.mode is PlaintextMode.PERMISSIVE
    assert policy.port_modes == ((80, None), (3306, PlaintextMode.STRICT))
