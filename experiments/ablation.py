"""Which of the paper's choices matter, on a task that needs attention: recall.

    python experiments/ablation.py --jobs=2            (resumes; about two hours)
    python experiments/ablation.py --collect           (JSON from what has run)

One setting per row, three seeds each, in the order below; every run is a file in
experiments/results/ablation, and experiments/results/ablation.json has the rows.
`docs/ablations.md` says what came out.
"""

import argparse
import sys
from collections.abc import Sequence

import sweep

SEEDS = range(3)
RECALL, EIGHT = "configs/recall.py", "configs/recall.py:8"
KIND, RULE = "model.attention.kind", "model.neuron.rule"
DECAY, GAIN = "model.neuron.decay_input", "model.attention.k_gain"
K, V = "model.attention.k", "model.attention.v"
NORMALISE = "model.attention.normalise"

ALPHABETS = [
    ((KIND, "a2os2a"),),
    ((KIND, "vssa"),),
    ((KIND, "a2os2a"), (K, "binary")),
    ((KIND, "a2os2a"), (V, "binary")),
    ((KIND, "frozen_qk"),),
    ((KIND, "none"),),
]
A2OS2A = ((KIND, "a2os2a"),)
THREE = [((KIND, kind),) for kind in ("a2os2a", "vssa", "none")]
GROUPS = {  # group -> (config, settings)
    "rule x attention": (
        RECALL,
        [
            (*attention, (DECAY, decay))
            for decay in ("False", "True")
            for attention in ALPHABETS
        ],
    ),
    "guo": (
        RECALL,
        [
            *[(*kind, (RULE, "guo")) for kind in THREE],
            *[(*kind, (RULE, "guo"), (GAIN, "0.015625")) for kind in THREE[:2]],
        ],
    ),
    "controls and scales": (
        RECALL,
        [
            *[((KIND, kind),) for kind in ("uniform", "v_only", "frozen_v")],
            *[(*A2OS2A, (NORMALISE, how)) for how in ("sqrt", "pow2", "shiftmax")],
        ],
    ),
    "one change": (
        RECALL,
        [
            (*A2OS2A, change)
            for change in (
                ("model.shortcut", "attention"),
                ("model.neuron.surrogate", "sigmoid(4)"),
                (GAIN, "0.015625"),
                ("model.neuron.v_th", "0.5"),
                ("model.attention.projection", "False"),
            )
        ],
    ),
    "learning rate": (
        RECALL,
        [
            (*attention, ("optim.lr", rate))
            for rate in ("3e-4", "3e-3")
            for attention in (*ALPHABETS[:2], ALPHABETS[3])
        ],
    ),
    "learning rate with a scale": (
        RECALL,
        [
            (*A2OS2A, change, ("optim.lr", rate))
            for rate in ("3e-4", "3e-3")
            for change in (
                (NORMALISE, "sqrt"),
                (NORMALISE, "pow2"),
                (NORMALISE, "shiftmax"),
                (GAIN, "0.015625"),
            )
        ],
    ),
    "16 keys": (RECALL, [(*kind, ("data.pairs", "16")) for kind in THREE]),
    "8 keys": (EIGHT, THREE),
}


def runs() -> list[sweep.Run]:
    """All of them, group after group."""
    return [
        run
        for config, settings in GROUPS.values()
        for run in sweep.runs_of("ablation", config, settings, SEEDS)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    args = parser.parse_args(argv)
    succeeded = args.collect or sweep.execute_all(runs(), args.jobs)
    sweep.finish(
        "ablation",
        runs(),
        command="python experiments/ablation.py",
        what="test accuracy (fraction) after the last step on 4,096 fresh examples",
        chance=0.1,
    )
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
