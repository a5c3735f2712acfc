"""Every attention under one recipe: recall, and a subset of Fashion-MNIST.

    python experiments/compare.py --jobs=2        (resumes; more than an hour)
    python experiments/compare.py --task=recall --attentions=a2os2a,ssa --seeds=1
    python experiments/compare.py --measure       (images/s; alone on the machine)
    python experiments/compare.py --collect       (JSON from what has run)

The set of clothes is read from $A2OS2A_DATA. Width, depth, steps, seeds, data, learning
rate, neuron and residual are the same for all, those of the paper: this compares
attentions, not the papers they are from, which have neurons and recipes of their own.
Each attention has the options that are its own (`modules.attention.KINDS`), among them
its scale and the threshold of its neuron.

A run is the ordinary command. What it measured goes to
experiments/results/compare/RUN.json, and then, of the first seed, what the folded model
does: firing rates, an estimate of its energy, and its certificate. The rows are in
experiments/results/compare.json, images/s in compare_speed.json. The table always holds
all that has run; --task and --attentions say what is run now.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "experiments" / "benchmarks"))
sys.path.insert(0, str(ROOT / "experiments"))

import sweep  # noqa: E402

from a2os2a_jax.modules.attention import KINDS  # noqa: E402

NAME = "compare"
KIND = "model.attention.kind"
SAME = {"vssa": "the same function as ssa"}
NEEDS_A_MAP = "needs a map"
COUNTED, COUNTED_SEED = 200, 0  # examples whose spikes are counted, in one batch
ROUNDS, REPEATS = 7, 3  # of --measure


class Task(NamedTuple):
    """A config, what is set in it, and whether its tokens are a square map."""

    config: str
    settings: tuple[tuple[str, str], ...]
    square: bool


TASKS = {
    # enough pairs and few enough steps that not every attention solves it
    "recall": Task(
        "configs/recall.py", (("data.pairs", "24"), ("train.steps", "400")), False
    ),
    "fashion": Task("configs/fashion_mnist.py:subset", (), True),
}


def left_out(task: str) -> dict[str, str]:
    """{kind that is not run: why}."""
    found = dict(SAME)
    if not TASKS[task].square:
        found |= {name: NEEDS_A_MAP for name, kind in KINDS.items() if kind.square}
    return found


def kinds(task: str) -> list[str]:
    """Those that are run, in the order of KINDS."""
    return [name for name in KINDS if name not in left_out(task)]


def runs(
    seeds: int, tasks: Sequence[str] = tuple(TASKS), only: Sequence[str] | None = None
) -> list[sweep.Run]:
    """One seed of every task and attention after the other.

    Raises:
      ValueError: an attention that does not exist, or is run in none of these tasks.
    """
    for name in only or ():
        if name not in KINDS:
            raise ValueError(
                f"--attentions: got {name!r}, expected some of {tuple(KINDS)}, or all"
            )
        if not any(name in kinds(task) for task in tasks):
            why = "; ".join(f"{task}: {left_out(task)[name]}" for task in tasks)
            raise ValueError(f"--attentions: got {name!r}, which is not run ({why})")
    return [
        run
        for seed in range(seeds)
        for task in tasks
        for run in sweep.runs_of(
            NAME,
            TASKS[task].config,
            [
                (*TASKS[task].settings, (KIND, kind))
                for kind in kinds(task)
                if only is None or kind in only
            ],
            [seed],
        )
    ]


def task_of(run: sweep.Run) -> str:
    (task,) = (name for name, task in TASKS.items() if task.config == run.config)
    return task


def config_of(run: sweep.Run) -> Any:
    """The config that its command has."""
    from a2os2a_jax import main

    flags = run.flags
    flags[0] = f"--config={ROOT / run.config}"
    config, *_ = main.parse([NAME, *flags])
    return config


# ---- what a trained model does


def count(run: sweep.Run) -> str:
    """Adds to its result what its folded model does; a line about that.

    Raises:
      ValueError: the checkpoint is not there any more.
    """
    from a2os2a_jax.train import trained

    config = config_of(run)
    found = trained.load(config, run.workdir)
    config.eval.update(examples=COUNTED, batch=COUNTED)
    made = folded(config, found.parts, found.variables)
    result = json.loads(run.result.read_text()) | {"folded": made}
    temp = run.result.with_suffix(".tmp")
    temp.write_text(json.dumps(result, indent=None, separators=(",", ":")) + "\n")
    temp.replace(run.result)
    return (
        f"{run.name}: {made['verdict']}, fires {100 * made['firing_rate']:.1f} %, "
        f"{made['nj']['float32: spiking, all of it']:,.0f} nJ"
    )


def folded(config: Any, parts: Any, variables: Any) -> dict[str, Any]:
    """Rates, energy and certificate of the folded model, on the first examples."""
    from a2os2a_jax import models
    from a2os2a_jax.commands import certify, energy

    shape = parts.dataset.shape
    tokens = shape[-2] if parts.model.stem == "tokens" else None
    report = certify.certify(
        *models.fold(parts.model, variables, tokens=tokens), (1, *shape)
    )
    account = energy.account(config, parts, variables)
    refused = list(dict.fromkeys((o.place, o.why) for o in report.refused))
    return {
        "verdict": report.verdict,
        "addition_only": report.addition_only,
        "refused": [list(pair) for pair in refused],
        "count": account["count"],
        "accuracy": account["folded_accuracy"],
        "firing_rate": account["mean_firing_rate"],
        "attention_firing_rate": rate_of(account["rates"], "attention/"),
        "sops": account["sops"],
        "macs": account["macs"],
        "attention_share": account["attention"]["branch"],
        "nj": account["total_nj"],
    }


def rate_of(rates: Mapping[str, Mapping[str, Any]], within: str) -> float | None:
    """Mean firing rate of the neurons of these layers; None if there are none.

    Args:
      rates: of `commands.energy.account`. within: what a layer's name has to contain.
    """
    fired = neurons = 0.0
    for name, layer in rates.items():
        if within in name:
            signs = layer["plus"], layer["minus"]  # each a list over time
            fired += sum(map(statistics.fmean, signs)) * layer["neurons"]
            neurons += layer["neurons"]
    return fired / neurons if neurons else None


def count_all(found: Sequence[sweep.Run], jobs: int) -> bool:
    """Of the runs that are there, those not counted yet; whether none failed."""
    left = [run for run in found if run.result.exists() and "folded" not in read(run)]
    if not left:
        return True
    # jax does not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = [(run, pool.submit(count, run)) for run in left]
        succeeded = True
        for run, future in waiting:
            try:
                print(future.result(), flush=True)
            except (ValueError, OSError) as error:
                succeeded = False
                print(
                    f"{run.name}: not counted: {error}; without its file it runs again",
                    flush=True,
                )
    return succeeded


def read(run: sweep.Run) -> dict[str, Any]:
    return json.loads(run.result.read_text())


# ---- the table


def collect(found: Sequence[sweep.Run], command: str) -> dict[str, Any]:
    """What compare.json holds of the runs that are there."""
    value = sweep.collect(
        found,
        command=command,
        what="accuracy (fraction) after the last step: recall on 4,096 fresh examples, "
        "Fashion-MNIST on 10,000 training images that were held out; parameters "
        "include those that a control never trains; folded: the folded model of seed "
        f"{COUNTED_SEED} on the first {COUNTED:,} of these examples; energies are "
        "estimates, counts times constants, nJ an example",
        left_out={task: left_out(task) for task in TASKS},
    )
    by_key: dict[tuple, list[sweep.Run]] = {}
    for run in found:
        if run.result.exists():
            by_key.setdefault((run.config, run.settings), []).append(run)
    for row in value["rows"]:
        same = by_key[row["config"], tuple(row["settings"].items())]
        kind = row["settings"][KIND]
        counted = [r["folded"] for r in map(read, same) if "folded" in r]
        row |= {
            "task": task_of(same[0]),
            "kind": kind,
            "mark": KINDS[kind].parity,
            "source": KINDS[kind].source,
            "folded": summary(counted) if counted else None,
        }
    return value


def summary(counted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One `folded` of those counted: means, and verdicts, which have to be one.

    Raises:
      ValueError: two seeds have two verdicts, which shapes alone decide.
    """
    verdicts = {(c["verdict"], json.dumps(c["refused"])) for c in counted}
    if len(verdicts) > 1:
        raise ValueError(f"compare: got verdicts {sorted(verdicts)}, expected one")

    def mean(key: str) -> float | None:
        values = [c[key] for c in counted]
        return None if None in values else statistics.fmean(values)

    keys = ("accuracy", "firing_rate", "attention_firing_rate", "sops", "macs")
    return {
        "n": len(counted),
        **{key: counted[0][key] for key in ("verdict", "addition_only", "refused")},
        "count": counted[0]["count"],
        **{key: mean(key) for key in (*keys, "attention_share")},
        "nj": {
            name: statistics.fmean(c["nj"][name] for c in counted)
            for name in counted[0]["nj"]
        },
    }


def write(found: Sequence[sweep.Run], command: str) -> None:
    """compare.json, and its rows as text.

    Raises:
      ValueError: the file there has rows or seeds that `found` has not.
    """
    sweep.check_table(found)
    value = collect(found, command)
    path = sweep.table_path(NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
    print(sweep.table(value))
    print(f"wrote {path.relative_to(sweep.ROOT)}")


# ---- speed


def measure() -> dict[str, Any]:
    """Images/s of training and inference, all attentions in turn, again and again."""
    import machine

    from a2os2a_jax.train import workdir as workdirs

    before = machine.matmul_gflops()
    rows, device = [], None
    for task in TASKS:
        ready: dict[str, dict[str, Callable[[], Any]]] = {}
        for run in runs(1, [task]):
            kind = run.settings[-1][1]
            ready[kind], batch, device = prepared(run)
            print(f"{task}, {kind}: compiled", flush=True)
        seconds = interleaved(ready)
        for kind, of in seconds.items():
            row = {"task": task, "kind": kind, "batch": batch}
            for what, each in of.items():
                row[what] = sweep.summary([batch / s for s in each])
            rows.append(row)
            print(
                f"{task}, {kind}: {row['training']['median']:,.0f} images/s of "
                f"training, {row['inference']['median']:,.0f} of inference",
                flush=True,
            )
    gflops = (before + machine.matmul_gflops()) / 2
    print(f"{gflops:.0f} GFLOP/s (product of two 2000 x 2000 matrices)")
    return {
        "command": "python experiments/compare.py --measure",
        "what": "examples a second: one step of training, and the folded model on the "
        f"same batch; {ROUNDS} rounds over all attentions of a task, "
        f"{REPEATS} calls a round; alone on the machine",
        "commit": workdirs.commit(),
        "device": device,
        "versions": workdirs.versions(),
        "gflops": gflops,
        "rows": rows,
    }


def prepared(run: sweep.Run) -> tuple[dict[str, Callable[[], Any]], int, str]:
    """({"training", "inference"}: functions of no argument), batch, device)."""
    import jax
    import numpy as np

    from a2os2a_jax import models
    from a2os2a_jax.train import parallel, setup, step
    from a2os2a_jax.train import workdir as workdirs

    config = config_of(run)
    parts, batch = setup.prepare(config), config.train.batch
    train, shape = parts.dataset.train, parts.dataset.shape
    train_step = jax.jit(
        step.make_train_step(
            parts.model,
            parts.tx,
            parts.rate,
            train,
            key=jax.random.key(1),
            inputs=parts.inputs,
            loss=parts.loss,
            frozen=parts.frozen,
        ),
        donate_argnums=0,
    )
    payload = parallel.put_batch(train.fetch(np.arange(batch)), parts.mesh)
    resident = parallel.put_whole(train.resident, parts.mesh)
    held = [parts.fresh_state(jax.random.key(config.seed))]

    def training() -> Any:
        held[0], row = train_step(held[0], resident, payload)
        return row

    training()  # the statistics of BN have seen a batch
    tokens = shape[-2] if parts.model.stem == "tokens" else None
    model, variables = models.fold(
        parts.model, jax.device_get(held[0].variables), tokens=tokens
    )
    image = jax.jit(train.gather)(resident, payload)["image"]
    answer = jax.jit(model.apply)

    def inference() -> Any:
        return answer(variables, image)

    inference()
    both = {"training": training, "inference": inference}
    return both, batch, workdirs.device(parts.mesh)


def interleaved(
    ready: Mapping[str, Mapping[str, Callable[[], Any]]],
    rounds: int = ROUNDS,
    repeats: int = REPEATS,
) -> dict[str, dict[str, list[float]]]:
    """Seconds of one call, for each round: what slows the machine meets all alike."""
    import jax

    seconds: dict[str, dict[str, list[float]]] = {
        kind: {what: [] for what in of} for kind, of in ready.items()
    }
    for _ in range(rounds):
        for kind, of in ready.items():
            for what, function in of.items():
                start = time.perf_counter()
                for _ in range(repeats):
                    out = function()
                jax.block_until_ready(out)
                each = (time.perf_counter() - start) / repeats
                seconds[kind][what].append(each)
    return seconds


# ---- command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=(*TASKS, "both"), default="both")
    parser.add_argument("--attentions", default="all", help="kinds, with commas; all")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--minutes", type=float, help="be done training within so many; again goes on"
    )
    parser.add_argument("--collect", action="store_true", help="run nothing")
    parser.add_argument("--measure", action="store_true", help="images/s, no training")
    args = parser.parse_args(argv)
    tasks = tuple(TASKS) if args.task == "both" else (args.task,)
    only = None if args.attentions == "all" else args.attentions.split(",")
    try:
        if args.seeds < 1:
            raise ValueError(f"--seeds: got {args.seeds}, expected at least 1")
        now, everything = runs(args.seeds, tasks, only), runs(args.seeds)
        if args.measure:
            if tasks != tuple(TASKS) or only:
                raise ValueError("--measure: expected all tasks and attentions with it")
            path = sweep.table_path(f"{NAME}_speed")
            path.write_text(json.dumps(measure(), indent=1) + "\n")
            print(f"wrote {path.relative_to(sweep.ROOT)}")
            return 0
        sweep.check_table(everything)
        succeeded = True
        if not args.collect:
            succeeded = sweep.execute_all(now, args.jobs, args.minutes)
            first = [run for run in now if run.seed == COUNTED_SEED]
            succeeded &= count_all(first, args.jobs)
        write(everything, f"python experiments/compare.py --seeds={args.seeds}")
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return sweep.exit_code(now, succeeded)


if __name__ == "__main__":
    sys.exit(main())
