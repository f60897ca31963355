"""A mesh of the demo for tests to play with, and the rule that one demo runs at a time."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.demo import held, join
from meshagent.demo.narrator import Narrator, StepResult
from meshagent.demo.world import World, build
from meshagent.lab import Lab


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A run removes what an earlier one kept, so two tests at once would undo each other's mesh."""
    descriptor = os.open(Path(__file__).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@pytest.fixture(scope="module")
def world(envoy: Path) -> Iterator[World]:
    """web, cache and db have joined; one mesh for all tests of a module: whatever a test breaks it mends."""
    with Lab() as lab:
        made = build(lab, Narrator(quiet=True))
        made.connections = held.hold(made)
        try:
            join.hub(made, StepResult("hub"))
            join.enroll(made, StepResult("enroll"))
            yield made
        finally:
            made.connections.stop()
