"""The generated messages in the repository are those of the .proto files beside them."""

import runpy
from pathlib import Path

import pytest
from google.protobuf.internal import api_implementation

import meshagent.protocol.pb

PB = Path(meshagent.protocol.pb.__file__).parent


def test_committed_messages_equal_a_fresh_generation(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    script = runpy.run_path(str(Path(__file__).parents[2] / "packaging/dev/protos.py"))
    assert script["generate"](tmp_path) == 0
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in PB.glob("*_pb2.py*")}
    assert committed == fresh, "run: python packaging/dev/protos.py"


def test_messages_need_no_grpc() -> None:
    assert not any("grpc" in path.read_text() for path in PB.glob("*.py*"))


def test_the_fast_protobuf_implementation_is_in_use() -> None:
    assert api_implementation.Type() == "upb"
