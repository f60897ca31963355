"""Before anything is started: one agent per root, whoever serves it and however early it is in its own start."""

import subprocess
import sys
from pathlib import Path

import pytest

from meshagent.agent.first import alone
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths
from meshagent.transport import unix

CODE = """
import sys
from pathlib import Path
from meshagent.agent.first import alone
from meshagent.model.paths import Paths
with alone(Paths(Path(sys.argv[1]))):
    print("alone", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path)
    found.run.mkdir(parents=True)
    return found


def test_a_second_agent_is_refused_while_the_first_is_still_starting_and_not_after_it_was_killed(paths: Paths) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", CODE, str(paths.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with first:
        assert first.stdout is not None
        assert first.stdout.readline() == "alone\n"
        with pytest.raises(MeshagentError, match="another process already serves") as refused, alone(paths):
            pass
        assert refused.value.code == "already-running"
        first.kill()
    with alone(paths):
        pass


def test_an_agent_that_takes_no_lock_is_known_by_its_socket(paths: Paths) -> None:
    refused = pytest.raises(MeshagentError, match="another process already serves")
    with unix.listen(paths.control_socket, unix.Access()), refused, alone(paths):
        pass
    with alone(paths):
        pass


def test_envoy_is_started_before_the_heavy_parts_are_loaded() -> None:
    heavy = ("grpc", "google.protobuf", "envoy", "cryptography", "meshagent.agent.app")
    code = f"import sys; import meshagent.agent.start; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
