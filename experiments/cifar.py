"""The paper's CIFAR ablation on one accelerator, in pieces that resume.

    python experiments/pack.py cifar10          (once, where TFDS is)
    python experiments/cifar.py --minutes=10    (again and again; stops and goes on)
    python experiments/cifar.py --epochs=100 --seeds=3 --groups=factorial
    python experiments/cifar.py --collect       (JSON from what has run)

The paper says that a ReLU key and a ternary value beat binary ones by 0.5 to 1 point; a
public report says the opposite, of a run whose value never got a gradient. So: K {ReLU,
binary} x V {ternary, binary}, and the controls without attention, with frozen Q and K,
and with a frozen V, at both neuron rules, on CIFAR-10 2-256, by one recipe, whose
cosine is shortened to --epochs. First one seed of everything, then 2-512. Every run is
a file in experiments/results/cifar.
"""

import argparse
import sys
from collections.abc import Sequence

import sweep

KIND, DECAY = "model.attention.kind", "model.neuron.decay_input"
K, V = "model.attention.k", "model.attention.v"
ATTENTIONS = [
    ((KIND, "a2os2a"),),
    ((KIND, "a2os2a"), (K, "binary")),
    ((KIND, "a2os2a"), (V, "binary")),
    ((KIND, "a2os2a"), (K, "binary"), (V, "binary")),
    ((KIND, "none"),),
    ((KIND, "frozen_qk"),),
    ((KIND, "frozen_v"),),
]
GROUPS = {  # group -> (size, settings)
    "factorial": (
        "2-256",
        [(*a, (DECAY, decay)) for decay in ("False", "True") for a in ATTENTIONS],
    ),
    "2-512": ("2-512", [ATTENTIONS[0]]),
}


def runs(
    groups: Sequence[str], epochs: int, seeds: int, common: Sequence[tuple[str, str]]
) -> list[sweep.Run]:
    """All of one seed before the next."""
    found = []
    for seed in range(seeds):
        for group in groups:
            size, settings = GROUPS[group]
            config = f"configs/cifar10.py:{size},{epochs}"
            settings = [(*common, *s) for s in settings]
            found += sweep.runs_of("cifar", config, settings, [seed])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", default=",".join(GROUPS), help="in this order")
    parser.add_argument("--epochs", type=int, default=20, help="of the whole cosine")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--minutes", type=float, help="stop after so many, and go on")
    parser.add_argument("--data", default="npz:packed/cifar10", help="data.name")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--dispatch", type=int, default=20, help="steps in one call")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    args = parser.parse_args(argv)
    common = [("data.name", args.data), ("dtype", args.dtype)]
    common += [("train.dispatch", str(args.dispatch)), ("train.save_epochs", "2.0")]
    try:
        found = runs(args.groups.split(","), args.epochs, args.seeds, common)
        done = args.collect or sweep.execute_all(found, 1, args.minutes)
    except (ValueError, KeyError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    command = "python experiments/cifar.py " + " ".join(argv or sys.argv[1:])
    sweep.finish("cifar", found, command=command.strip(), what="accuracy (fraction)")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
