"""Descriptors: as many as wanted, never fewer than there were."""

import subprocess
import sys

CHILD = """
import resource
from meshagent.machine.limits import raise_descriptor_limit
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
print(raise_descriptor_limit(1000), raise_descriptor_limit(100), raise_descriptor_limit(10**9) == hard)
"""


def test_the_limit_is_raised_as_far_as_it_goes_and_never_lowered() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1000", "1000", "True"]
