"""What is run on other kernels is what there is: a choice that finds more or fewer tests is told here, in seconds."""

import re
import subprocess
import sys

import pytest

from tests.boot.test_kernels import EVERYWHERE, FILES, KERNELS, ROOT, Expected


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.release)
def test_each_kernels_rows_find_as_many_tests_as_they_say(kernel: Expected) -> None:
    rows = EVERYWHERE | kernel.rows
    chosen = " or ".join(f"({row})" for row in rows)
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--color=no", "-p", "no:cacheprovider"]
    said = subprocess.run([*argv, *FILES, "-k", chosen], cwd=ROOT, capture_output=True, text=True).stdout
    found = re.search(r"^(\d+)/\d+ tests collected", said, re.M)
    assert found and int(found[1]) == sum(rows.values()), said[-2000:]
