"""How long to wait before trying again: exponential, with jitter so that a fleet doesn't come back in step."""

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Waits grow from ``first`` to ``limit`` seconds by ``factor``; each is drawn from [half of it, all of it].

    Half is kept as a floor: full jitter would let some of a thousand clients retry at once. ``rng`` is handed in so
    that tests can repeat a run.
    """

    first: float = 0.5
    limit: float = 30.0
    factor: float = 2.0
    rng: random.Random = field(default_factory=random.SystemRandom)
    failures: int = 0

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        exponent = min(self.failures, 64)  # beyond, factor ** n overflows a float long after the limit is reached
        self.failures += 1
        whole = min(self.limit, self.first * self.factor**exponent)
        return self.rng.uniform(whole / 2, whole)

    def reset(self) -> None:
        """It worked: the next failure waits ``first`` again."""
        self.failures = 0
