"""Generate ``meshagent/protocol/pb`` from ``meshagent/protocol/proto``: messages only, no gRPC stubs.

    python packaging/dev/protos.py [DIRECTORY]

Reproducible: the same grpcio-tools gives the same bytes; a test compares the committed files with a fresh generation.
"""

import sys
from pathlib import Path

from grpc_tools import protoc

PROTOCOL = Path(__file__).resolve().parents[2] / "meshagent/protocol"
PROTOS = sorted(path.name for path in (PROTOCOL / "proto").glob("*.proto"))


def generate(target: Path) -> int:
    """Write ``*_pb2.py`` and ``*_pb2.pyi`` into ``target``; returns protoc's exit status."""
    include = Path(protoc.__file__).parent / "_proto"  # google/protobuf/struct.proto
    options = [f"-I{PROTOCOL / 'proto'}", f"-I{include}", f"--python_out={target}", f"--pyi_out={target}"]
    return int(protoc.main(["protoc", *options, *PROTOS]))


if __name__ == "__main__":
    sys.exit(generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOCOL / "pb"))
