"""`python -m tests.campaign [--minutes 15] [--seed N]`: prints what a night found; exit code 1 if that is anything."""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.campaign.faults import break_the_machine
from tests.campaign.inputs import Inputs
from tests.campaign.kills import kill_at_random
from tests.campaign.tally import Tally


def campaign(minutes: float, seed: int) -> Tally:
    """Run all three parts and return what they counted: kills beside the others, inputs in what faults leave of it."""
    tally = Tally()
    begin = time.monotonic()
    end = begin + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="clmem-campaign-") as name:
        folder = Path(name)
        for part in ("kills", "faults/work", "inputs"):
            (folder / part).mkdir(parents=True)
        kills = threading.Thread(target=kill_at_random, args=(tally, folder / "kills", 0.9 * 60 * minutes, seed))
        kills.start()
        break_the_machine(tally, folder / "faults" / "work", seed, until=begin + 0.65 * 60 * minutes)
        Inputs(tally, folder / "inputs", examples=2000, number=seed, until=end).run()
        kills.join()
    return tally


def main() -> None:
    """Read the options, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=int(time.time() // 86400), help="default: one a day")
    options = parser.parse_args()
    tally = campaign(options.minutes, options.seed)
    print(f"seed {options.seed}: {tally}")
    sys.exit(1 if tally.findings else 0)


if __name__ == "__main__":
    main()
