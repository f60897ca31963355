"""All errors at once, each with file, line and field; warnings for what will surprise."""

import time

import pytest

from meshagent.hub.resources.checked import Report, SourceText, report_from_json
from meshagent.hub.resources.load import parse_resources
from meshagent.hub.resources.validate import validate
from meshagent.model.errors import UsageError

GOOD = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: legacy}
spec:
  hosts: [mysql.default.mesh.internal]
  addresses: [10.1.2.3]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {number: 3306, name: mysql, protocol: MySQL}
  workloadSelector: {labels: {app: mysql}}
"""
BAD = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: Bad_Name
  labels: {a: 1}
spec:
  hosts: ["*.x", ok.default.mesh.internal]
  addresses: [10.1.2.3, 10.0.0.0/8, 127.0.0.1, 240.240.0.9]
  resolution: DNS
  exportTo: ["."]
  foo: 1
  ports:
  - number: 99999
    protocol: quic
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec:
  mtls: {mode: DISABLE}
---
kind: Deployment
---
apiVersion: security.istio.io/v2
kind: PeerAuthentication
---
just text
"""


def check(text: str, **options: str) -> Report:
    return validate([SourceText("mesh.yaml", text)], **options)


def strict(extra: str) -> str:
    return f"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: s}}\nspec: {extra}\n"


def test_a_good_file_is_canonical_and_without_a_word() -> None:
    report = check(GOOD, namespace="shop")
    (entry,) = report.resources
    assert (report.errors, report.warnings) == ((), ())
    assert (entry.kind, entry.namespace, entry.name) == ("ServiceEntry", "shop", "legacy")
    assert entry.spec["ports"] == [{"number": 3306, "protocol": "mysql", "name": "mysql"}]
    assert report_from_json(report.as_json()) == report


def test_every_mistake_of_a_file_is_reported_at_once_with_line_and_field() -> None:
    found = {(p.line, p.field): p.message for p in check(BAD).errors}
    expected = {
        (4, "metadata.name"): "a-z",
        (5, "metadata.labels.a"): "quotes",
        (7, "spec.hosts[0]"): "wildcard",
        (8, "spec.addresses[1]"): "one by one",
        (8, "spec.addresses[2]"): "loopback",
        (8, "spec.addresses[3]"): "virtual",
        (9, "spec.resolution"): "STATIC",
        (10, "spec.exportTo"): "leave exportTo out",
        (11, "spec.foo"): "unknown field",
        (13, "spec.ports[0].number"): "65535",
        (13, "spec.ports[0].name"): "missing",
        (14, "spec.ports[0].protocol"): "one of",
        (20, "spec.mtls.mode"): "DISABLE is not supported",
        (22, "kind"): "not 'Deployment'",
        (24, "apiVersion"): "security.istio.io/v1",
        (27, ""): "mapping",
    }
    assert found.keys() == expected.keys()
    assert all(word in found[where] for where, word in expected.items())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "  endpoints: [{address: 10.0.0.1}]\n", "exclude each other"),
        (GOOD.replace("- {number", "- {number: 3306, name: a, protocol: TCP}\n  - {number"), "same number"),
        (GOOD.replace("resolution: STATIC", "location2: x"), "is missing"),
        (GOOD + "---\n" + GOOD, "given already in mesh.yaml:1"),
        (GOOD + "status: {}\n", "leave it out"),
        (strict("{portLevelMtls: {3306: {mode: STRICT}}}"), "needs a selector"),
        (strict("{selector: {matchLabels: {app: a}}, portLevelMtls: {99999: {mode: STRICT}}}"), "1 to 65535"),
        (strict("{selector: {matchLabels: {}}}"), "at least 1"),
        (strict("{mtls: {mode: strict}}"), "must be STRICT"),
        (strict("5"), "must be"),
        ("a: &x 1\n", "anchors and aliases"),
    ],
)
def test_what_contradicts_itself_is_an_error(text: str, words: str) -> None:
    assert any(words in problem.message for problem in check(text).errors), check(text).errors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace("  location: MESH_INTERNAL\n", ""), "without mutual TLS"),
        (GOOD.replace("  workloadSelector: {labels: {app: mysql}}\n", ""), "nothing serves it"),
        (GOOD.replace("workloadSelector: {labels: {app: mysql}}", "endpoints: [{address: 10.0.0.1}]"), "plain text"),
        (
            GOOD.replace(
                "workloadSelector: {labels: {app: mysql}}",
                "endpoints: [{address: 10.0.0.1, serviceAccount: db, labels: {security.istio.io/tlsMode: istio}}]",
            ),
            "port 3306: where its server speaks first",
        ),
        (GOOD.replace("3306", "22"), "port 22"),
        (strict("{mtls: {}}"), "changes nothing"),
        (
            strict("{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}}").replace(
                "name: s", "name: s, namespace: istio-system"
            ),
            "selects nothing",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w}\nspec: {address: 10.0.0.1}\n",
            "plain text",
        ),
    ],
)
def test_what_will_surprise_is_a_warning(text: str, words: str) -> None:
    report = check(text)
    assert not report.errors and any(words in w.message for w in report.warnings)


def test_what_get_prints_as_a_list_is_taken_again() -> None:
    inner = GOOD.replace("\n", "\n    ").rstrip()
    report = check(f"apiVersion: v1\nkind: List\nitems:\n  - {inner}\n")
    assert not report.errors and report.resources[0].name == "legacy" and report.resources[0].line == 4


def test_a_thousand_documents_are_checked_in_seconds() -> None:
    text = "---\n".join(GOOD.replace("legacy", f"legacy-{n}") for n in range(1000))
    began = time.monotonic()
    assert len(check(text).resources) == 1000
    assert time.monotonic() - began < 20  # 1 s on an idle core


def test_endless_errors_are_cut_with_their_number() -> None:
    report = check("---\n".join(["kind: x\n"] * 500))
    assert len(report.errors) == 201 and "300 more" in report.errors[-1].message


def test_without_a_hub_the_errors_come_as_one_exception() -> None:
    assert len(parse_resources(GOOD, "-").resources) == 1
    with pytest.raises(UsageError) as caught:
        parse_resources(BAD, "mesh.yaml")
    assert "16 errors" in caught.value.message and "mesh.yaml:11: spec.foo: unknown field" in caught.value.message
