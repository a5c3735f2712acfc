"""Digits and 8-key recall over seeds: A2OS2A, VSSA and no attention, two neuron rules.

    python experiments/first_light.py --jobs=2            (half an hour to an hour)
    python experiments/first_light.py --collect           (JSON from what has run)

Every run is a file in experiments/results/first_light, and
experiments/results/first_light.json has a row per setting. A seed decides the initial
weights, the order and the augmentation; the test examples are the same for all.
"""

import argparse
import sys
from collections.abc import Sequence

import sweep

SEEDS = range(5)
DIGITS, RECALL = "configs/digits.py", "configs/recall.py:8"
KIND, DECAY = "model.attention.kind", "model.neuron.decay_input"
GRID = {  # config -> (attention, decay_input)
    DIGITS: [
        ("a2os2a", "False"),
        ("vssa", "False"),
        ("none", "False"),
        ("a2os2a", "True"),
        ("vssa", "True"),
    ],
    RECALL: [
        ("a2os2a", "False"),
        ("vssa", "False"),
        ("none", "False"),
        ("a2os2a", "True"),
        ("vssa", "True"),
    ],
}


def runs() -> list[sweep.Run]:
    """All of them, digits first."""
    return [
        run
        for config, grid in GRID.items()
        for run in sweep.runs_of(
            "first_light",
            config,
            [((KIND, kind), (DECAY, decay)) for kind, decay in grid],
            SEEDS,
        )
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    args = parser.parse_args(argv)
    succeeded = args.collect or sweep.execute_all(runs(), args.jobs)
    sweep.finish(
        "first_light",
        runs(),
        command="python experiments/first_light.py --jobs=2",
        what="test accuracy (fraction) after the last step, over seeds",
    )
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
