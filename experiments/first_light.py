"""Digits and 8-key recall over seeds: A2OS2A, VSSA and no attention, two neuron rules.

    python experiments/first_light.py --jobs=2            (about half an hour)
    python experiments/first_light.py --collect           (JSON from what has run)

Every run is the ordinary command in a process of its own, below runs/first_light, and
is skipped if it has finished. Writes experiments/results/first_light.json: every run,
and one row per setting with median, mean, spread and n. A seed decides the initial
weights, the order and the augmentation; the test examples are the same for all.
"""

import argparse
import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sweep import summary

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "first_light"
RESULT = ROOT / "experiments" / "results" / "first_light.json"
SEEDS = range(5)
CONFIGS = {"digits": "digits.py", "recall": "recall.py:8"}
GRID = [  # (task, attention, decay_input)
    ("digits", "a2os2a", False),
    ("recall", "a2os2a", False),
    ("recall", "vssa", False),
    ("recall", "none", False),
    ("recall", "a2os2a", True),
    ("recall", "vssa", True),
    ("digits", "vssa", False),
    ("digits", "none", False),
    ("digits", "a2os2a", True),
    ("digits", "vssa", True),
]


def name(task: str, attention: str, decay_input: bool, seed: int) -> str:
    return f"{task}-{attention}-{'decayed' if decay_input else 'paper'}-{seed}"


def command(task: str, attention: str, decay_input: bool, seed: int) -> list[str]:
    """The command line of one run, relative to the project."""
    workdir = RUNS / name(task, attention, decay_input, seed)
    return [
        *("python", "-m", "a2os2a_jax.main"),
        f"--config=configs/{CONFIGS[task]}",
        f"--workdir={workdir.relative_to(ROOT)}",
        f"--config.seed={seed}",
        f"--config.model.attention.kind={attention}",
        f"--config.model.neuron.decay_input={decay_input}",
    ]


def run(setting: tuple) -> bool:
    """Whether the run of this setting succeeded."""
    log = RUNS / f"{name(*setting)}.log"
    line = [sys.executable, *command(*setting)[1:]]
    with open(log, "w") as file:
        code = subprocess.run(line, cwd=ROOT, stdout=file, stderr=file).returncode
    print(f"{name(*setting)}: {'done' if code == 0 else f'exit {code}, see {log}'}")
    return code == 0


def collect(gflops: float) -> dict:
    """Everything that has finished, as one JSON value."""
    runs = []
    for *setting, seed in itertools.chain.from_iterable(
        [(*setting, seed) for seed in SEEDS] for setting in GRID
    ):
        path = RUNS / name(*setting, seed) / "result.json"
        if path.exists():
            result = json.loads(path.read_text())
            keep = ("seed", "parameters", "steps", "epochs", "commit", "device")
            keep += ("versions", "train_seconds", "cpu_seconds", "train", "test")
            about = dict(
                zip(("task", "attention", "decay_input"), setting, strict=True)
            )
            line = " ".join(command(*setting, seed))
            kept = {k: result[k] for k in keep}
            rates = result["activity"]["firing_rate"].values()
            kept["firing_rate"] = sum(rates) / len(rates)
            runs.append(about | {"command": line} | kept)
    rows = []
    for task, attention, decay_input in GRID:
        same = [
            r
            for r in runs
            if (r["task"], r["attention"], r["decay_input"])
            == (task, attention, decay_input)
        ]
        if same:
            rows.append(
                {"task": task, "attention": attention, "decay_input": decay_input}
                | {"n": len(same), "parameters": same[0]["parameters"]}
                | {"test_accuracy": summary([r["test"]["accuracy"] for r in same])}
                | {k: summary([r[k] for r in same]) for k in _SECONDS}
            )
    return {
        "command": "python experiments/first_light.py --jobs=2",
        "what": "test accuracy (fraction) of the last epoch, over seeds",
        "matmul_gflops_when_collected": gflops,
        "commits": sorted({r["commit"] for r in runs if r["commit"]}),
        "rows": rows,
        "runs": runs,
    }


_SECONDS = ("train_seconds", "cpu_seconds")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    parser.add_argument("--only", default="", help="settings whose name has this in it")
    args = parser.parse_args()
    from benchmarks.machine import matmul_gflops

    RUNS.mkdir(parents=True, exist_ok=True)
    gflops = matmul_gflops()
    settings = [
        (*setting, seed)
        for setting in GRID
        for seed in SEEDS
        if args.only in name(*setting, seed)
        and not (RUNS / name(*setting, seed) / "result.json").exists()
    ]
    succeeded = True
    if not args.collect:
        with ThreadPoolExecutor(args.jobs) as pool:
            succeeded = all(list(pool.map(run, settings)))
    value = collect(gflops)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(value, indent=1) + "\n")
    for row in value["rows"]:
        a = row["test_accuracy"]
        print(
            f"{row['task']:<7} {row['attention']:<7} "
            f"{'decayed' if row['decay_input'] else 'paper':<8} n={row['n']}  "
            f"median {100 * a['median']:.2f} %  mean {100 * a['mean']:.2f} ± "
            f"{100 * a['std']:.2f}  ({100 * a['min']:.2f} to {100 * a['max']:.2f})  "
            f"{row['cpu_seconds']['median']:.0f} CPU-s"
        )
    print(f"wrote {RESULT.relative_to(ROOT)}; this machine: {gflops:.0f} GFLOP/s")
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
