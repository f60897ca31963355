"""Machine tests that need a host of their own use the lab's."""

from tests.lab.conftest import lab

__all__ = ["lab"]
