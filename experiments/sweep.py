"""Runs a config over seeds and settings, and makes one table of it.

    python experiments/sweep.py configs/recall.py --seeds=5 --jobs=2 \\
        --set model.attention.kind=a2os2a,vssa --set model.neuron.decay_input=False,True

Every run is the ordinary command in a process of its own, below runs/sweeps/NAME. What
it measured goes to experiments/results/NAME/RUN.json, and a run whose file is there is
not run again, so a sweep can be stopped and started as one likes; its config has to be
the one it had. experiments/results/NAME.json has a row per setting with median, mean,
spread and n. Commas separate values, except within brackets: straight_through(-1,1).
"""

import argparse
import itertools
import json
import math
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SAVING_SECONDS = 45.0  # before the deadline a run is told to stop, and save
STARTING_SECONDS = 30.0  # more than that have to be left for a run to be started
OUT_OF_TIME = 3  # exit code: nothing failed, and the same command goes on


class Run(NamedTuple):
    """One command: a config file, what is set in it, a seed; `sweep` is whose it is."""

    sweep: str
    config: str
    settings: tuple[tuple[str, str], ...]
    seed: int

    @property
    def name(self) -> str:
        """For example "recall,kind=vssa,decay_input=True,seed=0"."""
        # the file's own name, then the last word of each key; / and spaces are replaced
        task = re.sub(r"[^\w.-]+", "_", Path(self.config).stem + _argument(self.config))
        words = [f"{key.split('.')[-1]}={value}" for key, value in self.settings]
        text = ",".join([task, *words, f"seed={self.seed}"])
        return re.sub(r"[^\w.,=()+-]+", "_", text)

    @property
    def workdir(self) -> Path:
        return ROOT / "runs" / "sweeps" / self.sweep / self.name

    @property
    def result(self) -> Path:
        return ROOT / "experiments" / "results" / self.sweep / f"{self.name}.json"

    @property
    def flags(self) -> list[str]:
        """The command line behind `python -m a2os2a_jax.main`."""
        flags = [f"--config={self.config}"]
        flags += [f"--workdir={self.workdir.relative_to(ROOT)}"]
        flags += [f"--config.{key}={value}" for key, value in self.settings]
        return [*flags, f"--config.seed={self.seed}"]

    @property
    def command(self) -> str:
        quoted = [f"'{f}'" if re.search(r"[()\s,]", f) else f for f in self.flags]
        return " ".join(["python -m a2os2a_jax.main", *quoted])


def _argument(config: str) -> str:
    return f"-{config.split(':')[1]}" if ":" in config else ""


def grid(values: Sequence[str]) -> list[tuple[tuple[str, str], ...]]:
    """["a=1,2", "b=3"] -> [(("a", "1"), ("b", "3")), (("a", "2"), ("b", "3"))].

    Raises:
      ValueError: a text that is not key=value[,value...].
    """
    axes = []
    for text in values:
        key, equals, rest = text.partition("=")
        found = re.findall(r"(?:[^,(]|\([^)]*\))+", rest)
        if not (key and equals and found):
            raise ValueError(f"--set: got {text!r}, expected key=value,value")
        axes.append([(key, value) for value in found])
    return list(itertools.product(*axes))


def runs_of(
    sweep: str,
    config: str,
    settings: Sequence[Sequence[tuple[str, str]]],
    seeds: Sequence[int],
) -> list[Run]:
    """All runs, one seed of every setting after the other.

    Raises:
      ValueError: two of them would have one name.
    """
    runs = [Run(sweep, config, tuple(s), seed) for seed in seeds for s in settings]
    if twice := {
        run.name for run in runs if [r.name for r in runs].count(run.name) > 1
    }:
        raise ValueError(f"sweep: got {sorted(twice)} twice, expected other settings")
    return runs


def check(run: Run) -> None:
    """ValueError where the config is wrong, or not that of the result that is there."""
    from a2os2a_jax import config as configs
    from a2os2a_jax import main

    line = ["sweep", *run.flags]
    line[1] = f"--config={ROOT / run.config}"
    config, *_ = main.parse(line)
    configs.check(config)
    if run.result.exists():
        old = json.loads(run.result.read_text())["config"]
        if differing := configs.differences(old, configs.to_json(config)):
            raise ValueError(
                f"{run.result.relative_to(ROOT)}: {'; '.join(differing)}; remove the "
                "file to run this setting again, or name the sweep otherwise"
            )


def check_table(runs: Sequence[Run]) -> None:
    """ValueError where the sweep's table has rows or seeds that these runs have not."""
    for path in {table_path(run.sweep) for run in runs}:
        if not path.exists():
            continue
        ours = {(run.config, run.settings, run.seed) for run in runs}
        for row in json.loads(path.read_text())["rows"]:
            key = row["config"], tuple(row["settings"].items())
            if lost := [seed for seed in row["seeds"] if (*key, seed) not in ours]:
                words = ", ".join(f"{k}={v}" for k, v in key[1])
                raise ValueError(
                    f"{path.relative_to(ROOT)}: has {key[0]} {words} of the seeds "
                    f"{lost}, which would be lost; name the sweep otherwise, or ask "
                    "for these, too"
                )


def table_path(sweep: str) -> Path:
    return ROOT / "experiments" / "results" / f"{sweep}.json"


def call(line: Sequence[str], file: IO, deadline: float) -> tuple[int, bool]:
    """(exit code, whether it ended by itself).

    It gets SIGTERM some time before the deadline, on which it saves and ends, and at
    the deadline SIGKILL; what it saved before, it goes on from.
    """
    process = subprocess.Popen(line, cwd=ROOT, stdout=file, stderr=file)

    def wait(until: float) -> int:
        left = until - time.monotonic()
        return process.wait(None if left == math.inf else max(left, 0))

    try:
        return wait(deadline - SAVING_SECONDS), True
    except subprocess.TimeoutExpired:
        process.terminate()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    try:
        return wait(deadline), False
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(), False


def execute(run: Run, deadline: float = math.inf) -> bool:
    """Runs it and files its result; whether it succeeded, or was told to stop.

    deadline: of time.monotonic(); a run is stopped before it as by Ctrl-C, and saved.
    """
    if time.monotonic() + SAVING_SECONDS + STARTING_SECONDS >= deadline:
        return True
    run.workdir.parent.mkdir(parents=True, exist_ok=True)
    log = run.workdir.with_name(f"{run.name}.log")
    line = [sys.executable, "-m", "a2os2a_jax.main", *run.flags]
    with open(log, "a") as file:
        code, in_time = call(line, file, deadline)
    # before the first step nothing handles the signal, and nothing is lost by it
    stopped = not in_time and code in (0, -signal.SIGTERM, -signal.SIGKILL)
    if stopped and not (run.workdir / "result.json").exists():
        saved = "and saved" if code == 0 else "and goes on from what it had saved"
        print(f"{run.name}: stopped for the time, {saved}", flush=True)
        return True
    if not stopped and code or not (run.workdir / "result.json").exists():
        state = f"exit {code}" if code else "stopped before its end"
        print(f"{run.name}: {state}, see {log.relative_to(ROOT)}", flush=True)
        return False
    result = json.loads((run.workdir / "result.json").read_text())
    lines = (run.workdir / "metrics.jsonl").read_text().splitlines()
    result = {"command": run.command, "settings": dict(run.settings)} | result
    result["curve"] = [_short(json.loads(text)) for text in lines]
    run.result.parent.mkdir(parents=True, exist_ok=True)
    temp = run.result.with_suffix(".tmp")
    temp.write_text(json.dumps(result, indent=None, separators=(",", ":")) + "\n")
    temp.replace(run.result)
    accuracy = result[result["config"]["eval"]["split"]]["accuracy"]
    print(f"{run.name}: {100 * accuracy:.2f} %", flush=True)
    return True


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    keep = ("step", "split", "loss", "accuracy", "grad_norm")
    return {
        k: round(v, 5) if isinstance(v, float) else v
        for k, v in record.items()
        if k in keep
    }


def execute_all(runs: Sequence[Run], jobs: int, minutes: float | None = None) -> bool:
    """Those that have no result yet, `jobs` at a time; whether none failed.

    minutes: be done within so many; what is at work is saved, and goes on later.

    Raises:
      ValueError: before anything runs: too few minutes to start a run, a wrong config,
        a table with rows that this sweep would lose.
    """
    least = (SAVING_SECONDS + STARTING_SECONDS) / 60
    if minutes is not None and minutes <= least:
        raise ValueError(f"--minutes: got {minutes}, expected more than {least}")
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    check_table(runs)
    for run in runs:
        check(run)
    left = [run for run in runs if not run.result.exists()]
    print(f"{len(runs) - len(left)} of {len(runs)} runs are there", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        return all(list(pool.map(lambda run: execute(run, deadline), left)))


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, mean, spread (standard deviation, n - 1), least and largest."""
    return {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
    }


def collect(runs: Sequence[Run], **about: Any) -> dict[str, Any]:
    """Rows of what has finished, in the order of `runs`, and `about` before them."""
    rows: dict[tuple, list[dict]] = {}
    for run in runs:
        if run.result.exists():
            result = json.loads(run.result.read_text())
            rows.setdefault((run.config, run.settings), []).append(result)
    commits = {r["commit"] for results in rows.values() for r in results}
    devices = {r["device"] for results in rows.values() for r in results}
    return {
        **about,
        "commits": sorted(filter(None, commits)),
        "devices": sorted(devices),
        "rows": [_row(*key, results) for key, results in rows.items()],
    }


def _row(config: str, settings: tuple, results: list[dict]) -> dict[str, Any]:
    split = results[0]["config"]["eval"]["split"]
    layers = results[0]["activity"]["firing_rate"]

    def per_layer(what: str) -> dict[str, float]:
        return {
            name: round(statistics.fmean(r["activity"][what][name] for r in results), 4)
            for name in layers
        }

    return {
        "config": config,
        "settings": dict(settings),
        "n": len(results),
        "seeds": [r["seed"] for r in results],
        "parameters": results[0]["parameters"],
        f"{split}_accuracy": summary([r[split]["accuracy"] for r in results]),
        "accuracies": [r[split]["accuracy"] for r in results],
        "train_seconds": summary([r["train_seconds"] for r in results]),
        "cpu_seconds": summary([r["cpu_seconds"] for r in results]),
        "firing_rate": per_layer("firing_rate"),
        "near_threshold": per_layer("near_threshold"),
    }


def accuracy(row: Mapping[str, Any]) -> dict[str, float]:
    """The summary of the accuracies, in per cent."""
    (key,) = (key for key in row if key.endswith("_accuracy"))
    return {name: 100 * value for name, value in row[key].items()}


def table(value: Mapping[str, Any]) -> str:
    """Rows as lines of text."""
    lines = []
    for row in value["rows"]:
        a = accuracy(row)
        words = ", ".join(f"{k}={v}" for k, v in row["settings"].items())
        lines.append(
            f"median {a['median']:6.2f} %  mean {a['mean']:6.2f} ± {a['std']:5.2f}  "
            f"({a['min']:.2f} to {a['max']:.2f})  n={row['n']}  "
            f"{row['config']}  {words}"
        )
    return "\n".join(lines)


def exit_code(runs: Sequence[Run], succeeded: bool) -> int:
    """0 if every run is there, 1 if one failed, OUT_OF_TIME where some are to come."""
    if not succeeded:
        return 1
    left = sum(not run.result.exists() for run in runs)
    if left:
        print(f"{left} of {len(runs)} runs are to come: the same command goes on")
    return OUT_OF_TIME if left else 0


def finish(name: str, runs: Sequence[Run], **about: Any) -> dict[str, Any]:
    """Writes experiments/results/NAME.json and prints its table.

    Raises:
      ValueError: the file there has rows or seeds that `runs` have not.
    """
    check_table(runs)
    value = collect(runs, **about)
    path = table_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
    print(table(value))
    print(f"wrote {path.relative_to(ROOT)}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a file in configs/, as in configs/recall.py:x")
    parser.add_argument("--set", action="append", default=[], help="key=value,value")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--name", help="of the results; the config's name by default")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--minutes", type=float, help="be done within so many; again goes on"
    )
    parser.add_argument("--collect", action="store_true", help="run nothing")
    args = parser.parse_args(argv)
    name = args.name or Path(args.config.split(":")[0]).stem + _argument(args.config)
    line = [f"--set '{text}'" for text in args.set]
    command = " ".join(
        ["python experiments/sweep.py", args.config, f"--seeds={args.seeds}", *line]
    )
    what = "accuracy (fraction) after the last step"
    try:
        if args.seeds < 1:
            raise ValueError(f"--seeds: got {args.seeds}, expected at least 1")
        runs = runs_of(name, args.config, grid(args.set), range(args.seeds))
        succeeded = args.collect or execute_all(runs, args.jobs, args.minutes)
        finish(name, runs, command=command, what=what)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return exit_code(runs, succeeded)


if __name__ == "__main__":
    sys.exit(main())
