"""Ctrl-C, a polite end or kill -9 at any moment: nothing of the demo stays."""

import random
import signal
import sys
import time
from pathlib import Path

import pytest

from meshagent.lab import sweep, wait_until
from tests.demo.demos import lab_of, processes, start

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("alone"),
    pytest.mark.xdist_group("demo"),
    pytest.mark.timeout(180),
]

#: Seconds after the lab's directory appeared, from and to. Each run picks a moment in between, so that over time every
#: one is hit; a failure shows which it was.
EARLY, BUILDING, TELLING = (0.0, 1.0), (1.0, 4.0), (4.0, 9.0)


def _interrupt(number: int, window: tuple[float, float], twice: bool = False) -> tuple[int, str, str, str]:
    """Exit status, lab, stdout and stderr of a demo that got the signal."""
    after = random.uniform(*window)
    sys.stdout.write(f"signal {number} after {after:.3f} s\n")
    demo = start("-o", "json")
    lab = wait_until(lambda: lab_of(demo.pid), what="the demo's lab", timeout=30)
    time.sleep(after)  # the moment itself is what is tested
    demo.send_signal(number)
    if twice:
        time.sleep(0.05)
        demo.send_signal(number)
    out, err = demo.communicate(timeout=60)
    return demo.returncode, lab, out, err


@pytest.mark.parametrize("window", [EARLY, BUILDING, TELLING])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_at_any_moment_cleans_everything_and_exits_130(
    envoy: Path, number: signal.Signals, window: tuple[float, float]
) -> None:
    status, lab, out, err = _interrupt(number, window, twice=window == TELLING)
    assert (status, out) == (130, ""), err
    assert "Traceback" not in err
    assert not Path("/run", lab).exists() and processes(lab) == []


@pytest.mark.parametrize("window", [EARLY, TELLING])
def test_what_a_killed_one_left_is_removed_by_the_next(envoy: Path, window: tuple[float, float]) -> None:
    status, lab, _, _ = _interrupt(signal.SIGKILL, window)
    assert status == -signal.SIGKILL
    sweep()  # what every lab does first
    wait_until(lambda: not processes(lab), what="the end of what was left")
    assert not Path("/run", lab).exists()
