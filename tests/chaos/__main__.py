"""``python -m tests.chaos``: the whole suite, the table, exit status 1 when a promise was broken.

``--soak MINUTES``: instead of faults changes, as long as that, and a table of what grew.
"""

import argparse
import os
import random
import signal
import sys

from tests.bench.stage import envoy_binary
from tests.chaos.faults import FAULTS
from tests.chaos.growth import growths
from tests.chaos.growth import render as render_growths
from tests.chaos.run import suffer
from tests.chaos.soak import soak
from tests.chaos.stage import Stage, open_stage
from tests.chaos.table import Outcome, render


def main(arguments: list[str]) -> int:
    """Bounded: 19 faults take 4 minutes a round on two idle cores."""
    asked = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the lab ends with its block
    os.environ["MESHAGENT_ENVOY"] = str(envoy_binary())
    seed = asked.seed or str(random.SystemRandom().randrange(1 << 32))
    tell(f"seed {seed}; repeat it with: make chaos ARGS='--seed {seed}'")
    chosen = [fault for fault in FAULTS if not asked.only or asked.only in fault.name]
    outcomes: list[Outcome] = []
    try:
        with open_stage(seed) as stage:
            if asked.soak:
                return soaked(stage, asked.soak)
            for number in range(asked.rounds):
                tell(
                    f"round {number + 1}: {len(chosen)} faults in a mesh of {len(stage.mesh.members)} hosts under load"
                )
                for outcome in suffer(stage, chosen, tell):
                    outcomes.append(outcome)
    finally:  # also what was found before it was interrupted
        sys.stdout.write(render(outcomes) + "\n" if outcomes else "")
    broken = [outcome.fault for outcome in outcomes if not outcome.ok]
    tell(f"promises broken: {', '.join(broken)}" if broken else f"{len(outcomes)} faults, no promise broken")
    return 1 if broken else 0


def soaked(stage: Stage, minutes: float) -> int:
    """Changes for so long; 1 when an exchange failed or a process grows."""
    found = growths(soak(stage, minutes, tell))
    stage.settle()
    met = stage.met(0.0)
    failed = sum(tally.failed for tally in met.values())
    sys.stdout.write(render_growths(found) + "\n")
    sys.stdout.write("".join(f"{flow}: {error}\n" for flow, tally in met.items() for error in tally.errors[:3]))
    tell(f"{sum(tally.done for tally in met.values())} exchanges went well, {failed} failed in {minutes:g} minutes")
    return 0 if not failed and all(each.ok for each in found) else 1


def tell(line: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(f"chaos: {line}\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", default="", help="repeat the order and the victims of a run")
    parser.add_argument("--only", default="", help="faults whose name holds this")
    parser.add_argument("--soak", type=float, default=0.0, help="minutes of changes instead of faults")
    parser.add_argument("--rounds", type=int, default=1, help="every fault so many times")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
