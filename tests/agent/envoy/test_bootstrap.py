"""The bootstrap: one golden file a person can read, and a real Envoy that takes it."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from meshagent.agent.envoy.bootstrap import ProxyNode, Sockets, render

GOLDEN = Path(__file__).parents[2] / "golden/envoy/bootstrap.json"
NODE = ProxyNode(
    "sidecar~10.0.0.1~web.default~default.svc.mesh.internal",
    "web.default",
    {"NAMESPACE": "default", "DNS_CAPTURE": "true"},
)
HEAP = 256 << 20
SOCKETS = Sockets(
    xds=Path("/run/meshagent/xds.sock"),
    sds=Path("/run/meshagent/sds.sock"),
    admin=Path("/run/meshagent/proxy/admin-0.sock"),
    farewell=Path("/run/meshagent/proxy-1234567-0.drain"),
)


def test_the_bootstrap_is_the_one_in_the_golden_file() -> None:
    assert render(NODE, SOCKETS, HEAP) == json.loads(GOLDEN.read_text())


def test_no_key_no_certificate_and_no_tcp_port_is_in_it() -> None:
    text = json.dumps(render(NODE, SOCKETS, HEAP))
    for word in ("private_key", "certificate", "inline", "port_value"):
        assert word not in text


@pytest.mark.root
def test_envoy_takes_it_without_a_warning(tmp_path: Path, envoy: Path) -> None:
    file, farewell = tmp_path / "bootstrap.json", tmp_path / "drain"
    farewell.write_text("0\n")
    file.write_text(json.dumps(render(NODE, replace(SOCKETS, farewell=farewell), HEAP)))
    found = subprocess.run([envoy, "--mode", "validate", "-c", file, "-l", "warning"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "deprecated" not in found.stderr
    assert "OK" in found.stdout
