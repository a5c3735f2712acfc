"""The paper's CIFAR experiments on one accelerator, in pieces that resume.

    python experiments/pack.py cifar10                (once, where TFDS is)
    python experiments/cifar.py factorial             (again until it exits with 0)
    python experiments/cifar.py 2-512 --epochs=60
    python experiments/cifar.py reproduction --seeds=3
    python experiments/cifar.py best --name=lr --set optim.lr=1e-3
    python experiments/cifar.py factorial --collect   (JSON from what has run)

Tracks, kept apart: each has its own table, cifar-TRACK-EPOCHS.

factorial: the paper says that a ReLU key and a ternary value beat binary ones by 0.5 to
1 point; a public report says the opposite, of a run whose value never got a gradient.
So: K {ReLU, binary} x V {ternary, binary}, and the controls without attention, with
frozen Q and K, and with a frozen V, at both neuron rules, on CIFAR-10 2-256.
2-512: A2OS2A alone, with as many epochs as there is time for; the cosine is shortened.
reproduction: the paper's table, A2OS2A and VSSA, 2-256 and 2-512, CIFAR-10 and -100, by
the recipe in full. To be reached on CIFAR-10 2-512: 96.3 +- 0.3 %.
best: any recipe, by --set, in a table of its own, cifar-best-NAME-EPOCHS.

Exit code: 0 if all runs of the track are there, 3 if some are to come, 1 if one failed.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import sweep

KIND, DECAY = "model.attention.kind", "model.neuron.decay_input"
K, V = "model.attention.k", "model.attention.v"
A2OS2A, VSSA = ((KIND, "a2os2a"),), ((KIND, "vssa"),)
ATTENTIONS = [
    A2OS2A,
    (*A2OS2A, (K, "binary")),
    (*A2OS2A, (V, "binary")),
    (*A2OS2A, (K, "binary"), (V, "binary")),
    ((KIND, "none"),),
    ((KIND, "frozen_qk"),),
    ((KIND, "frozen_v"),),
]


class Track(NamedTuple):
    """What is run: every size on every set, with every setting."""

    sets: tuple[str, ...]
    sizes: tuple[str, ...]
    settings: Sequence[tuple[tuple[str, str], ...]]
    epochs: int  # of the whole cosine, unless --epochs says otherwise


TRACKS = {
    "factorial": Track(
        ("cifar10",),
        ("2-256",),
        [(*a, (DECAY, decay)) for decay in ("False", "True") for a in ATTENTIONS],
        20,
    ),
    "2-512": Track(("cifar10",), ("2-512",), [A2OS2A], 20),
    "reproduction": Track(
        ("cifar10", "cifar100"), ("2-256", "2-512"), [A2OS2A, VSSA], 300
    ),
    "best": Track(("cifar10",), ("2-512",), [A2OS2A], 300),
}


def table_name(track: str, epochs: int, name: str | None = None) -> str:
    """Of the sweep, and so of its table and its folder."""
    return "-".join(["cifar", track, *([name] if name else []), str(epochs)])


def runs(
    track: str,
    epochs: int,
    seeds: int,
    common: Sequence[tuple[str, str]],
    data: str = "npz:packed/{}",
    name: str | None = None,
) -> list[sweep.Run]:
    """All of one seed before the next; `data` is a data.name with {} for the set."""
    t, table = TRACKS[track], table_name(track, epochs, name)
    found = []
    for seed in range(seeds):
        for of in t.sets:
            own = (("data.name", data.format(of)), *common)
            settings = [(*own, *s) for s in t.settings]
            for size in t.sizes:
                config = f"configs/{of}.py:{size},{epochs}"
                found += sweep.runs_of(table, config, settings, [seed])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("track", choices=TRACKS, help="see the head of this file")
    parser.add_argument("--epochs", type=int, help="of the whole cosine")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--minutes", type=float, default=10.0, help="of this piece")
    parser.add_argument(
        "--data", default="npz:packed/{}", help="data.name; {}: the set"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--dispatch", type=int, default=20, help="steps in one call")
    parser.add_argument("--save_epochs", default="2.0", help="between checkpoints")
    parser.add_argument("--name", help="of a recipe of the track best")
    parser.add_argument("--set", action="append", default=[], help="key=value of best")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    args = parser.parse_args(argv)
    common = [("dtype", args.dtype), ("train.dispatch", str(args.dispatch))]
    common += [("train.save_epochs", args.save_epochs)]
    epochs = args.epochs or TRACKS[args.track].epochs
    # how the table is made again: whatever the piece, and by whom it is run
    command = [w for w in argv if not w.startswith(("--collect", "--minutes"))]
    about = {
        "command": " ".join(["python experiments/cifar.py", *command]),
        "what": "accuracy (fraction) after the last step",
    }
    try:
        if (args.track == "best") != bool(args.name):
            raise ValueError(
                "--name: expected one with the track best, and with no other"
            )
        if args.set and args.track != "best":
            raise ValueError(f"--set: got {args.set}, expected none but with best")
        if args.seeds < 1:
            raise ValueError(f"--seeds: got {args.seeds}, expected at least 1")
        (*others, more) = sweep.grid(args.set)
        if others:
            raise ValueError(f"--set: got several values in {args.set}, expected one")
        common += more
        found = runs(args.track, epochs, args.seeds, common, args.data, args.name)
        done = args.collect or sweep.execute_all(found, 1, args.minutes)
        sweep.finish(table_name(args.track, epochs, args.name), found, **about)
    except (ValueError, KeyError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return sweep.exit_code(found, done)


if __name__ == "__main__":
    sys.exit(main())
