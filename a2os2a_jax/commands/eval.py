"""--mode=eval: a trained run, scored in full on a split; the keys are `eval.*`."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from a2os2a_jax import failures, texts
from a2os2a_jax.analysis import plots
from a2os2a_jax.files import expanded
from a2os2a_jax.train import metrics, trained
from a2os2a_jax.train import workdir as workdirs

CLASSES = 100  # with more, the confusion matrix is neither written nor drawn
_STEPS = 12  # accuracies of the any-time line, at most
_WORST, _NAME = 3, 24  # classes, characters of their names
NEXT_OF_FILE = (
    "next: --config.eval.timesteps=N scores it at another T; --mode=train with the\n"
    "      same --config.init_from, and another --workdir, trains it on"
)


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Scores `eval.split`, prints it, adds a line to DIR/evaluations.jsonl, draws it.

    Returns:
      The line: what was scored and how, then `train.evaluate.summary` of it.
    Raises:
      ValueError: an option that does not fit the run; see `trained.load`.
      FloatingPointError: the loss is not finite; nothing is written.
    """
    folder = expanded(workdir)
    if folder.is_file():
        raise ValueError(f"--workdir: got the file {workdir}, expected a directory")
    found = trained.load(config, folder)
    report = found.parts.evaluator(config, config.eval.split).report(found.variables)
    step, split = found.steps[-1], config.eval.split
    if not math.isfinite(report["loss"]):
        raise FloatingPointError(
            f"step {step}, {split}: loss is {report['loss']}, expected a finite "
            "number; eval.checkpoint takes another step"
        )
    dataset = found.parts.dataset
    record = {
        "step": step,
        "split": split,
        "checkpoint": config.eval.checkpoint,
        "steps": list(found.steps),  # of the checkpoints whose mean is scored
        "weights": found.weights,
        "data": dataset.name,
        "size": dataset.shape[-2] if config.model.stem != "tokens" else None,
        "timesteps": len(report["any_time"]),
        "changed": found.changed,  # against the training
        **({} if found.about is None else {"init_from": found.about}),
        "commit": workdirs.commit(),
        "device": workdirs.device(found.parts.mesh),
        **report,
    }
    names = dataset.class_names or tuple(map(str, range(dataset.classes)))
    try:
        if jax.process_index() == 0:
            log = _write(record, names, folder)
    finally:  # what took hours is told even where it cannot be kept
        print(table(record, names))
    if jax.process_index() == 0:
        print(f"wrote a line to {log}")
        _draw(record, names, tag(config, found), folder)
        held_out = dataset.validation is not None
        print(_next(held_out) if found.about is None else NEXT_OF_FILE)
    return record


def tag(config: ConfigDict, found: trained.Trained) -> str:
    """step4-test-T8-16px: step, split, and all that is not as in the training."""
    how = {
        "average": "mean_of_{}",
        "ema": "without_ema",
        "data": "{}",
        "timesteps": "T{}",
        "size": "{}px",
        "data.changed": "changed_data",
    }
    of = f"step{found.steps[-1]}" if found.about is None else _name(found.about)
    parts = [of, config.eval.split]
    parts += [how[key].format(value) for key, value in found.changed.items()]
    if config.eval.examples is not None:
        parts.append(f"first{config.eval.examples}")
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))


def _name(about: dict[str, Any]) -> str:
    """spikformer of DIR/spikformer.pth.tar, spikformer-net of spikformer.pth@net."""
    name = Path(about["path"]).name
    entry = f"-{name.rpartition('@')[2]}" if "@" in name else ""
    return f"{name.partition('.')[0] or 'weights'}{entry}"


def table(record: dict[str, Any], names: Sequence[str]) -> str:
    """A few lines for people."""
    of, steps = record["weights"], record["steps"]
    if len(steps) > 1:
        listed = ", ".join(map(str, steps))
        of += f", mean of {len(steps)} checkpoints: steps {listed}"
    at = f" at {record['size']}x{record['size']}" if record["size"] else ""
    any_time = record["any_time"]
    rows = [
        ("scored", f"{of}; {record['data']}{at}, T = {record['timesteps']}"),
        ("calibration", f"ECE {100 * record['ece']:.2f} %"),
        (f"after 1..{len(any_time)} steps", _any_time(any_time)),
        ("worst classes", _worst(record, names)),
    ]
    width = max(len(name) for name, _ in rows)
    head = (
        f"step {record['step']}, {record['split']}: accuracy "
        f"{100 * record['accuracy']:.2f} %, top-5 {100 * record['top5']:.2f} %, loss "
        f"{record['loss']:.4f}, {record['count']:,} examples"
    )
    return "\n".join([head, *(f"  {name:<{width}}  {text}" for name, text in rows)])


def _any_time(accuracies: Sequence[float]) -> str:
    count = len(accuracies)
    if count <= _STEPS:
        return ", ".join(f"{100 * a:.2f}" for a in accuracies) + " %"
    some = np.unique(np.linspace(1, count, _STEPS).round().astype(int))
    return ", ".join(f"{t}: {100 * accuracies[t - 1]:.2f}" for t in some) + " %"


def _worst(record: dict[str, Any], names: Sequence[str]) -> str:
    sizes = record["per_class_count"]
    scored = [(a, i) for i, a in enumerate(record["per_class"]) if a is not None]
    return ", ".join(
        f"{texts.line(names[i], _NAME)} ({100 * a:.2f} % of {sizes[i]:,})"
        for a, i in sorted(scored)[:_WORST]
    )


def _write(record: dict[str, Any], names: Sequence[str], folder: Path) -> Path:
    """Adds a line to the file that is returned."""
    few = len(names) <= CLASSES
    path = folder / "evaluations.jsonl"
    metrics.JsonLines(path)(
        {k: v for k, v in record.items() if few or k != "confusion"}
    )
    return path


@failures.spared("figures")
def _draw(record: dict[str, Any], names: Sequence[str], tag: str, folder: Path) -> None:
    """Figures; one that is there already is kept."""
    plots.check_matplotlib()
    few = len(names) <= CLASSES
    of = f"{record['data']}, {tag.replace('-', ', ')}"
    ways = {  # name -> what draws it
        "confusion": lambda path: plots.confusion(
            record["confusion"], path, names, title=f"Confusion: {of}"
        ),
        "reliability": lambda path: plots.reliability(
            record["bins"], path, title=f"Reliability: {of}"
        ),
        "any_time": lambda path: plots.any_time(
            record["any_time"],
            path,
            title=f"Any-time accuracy: {of}",
            count=record["count"],
        ),
    }
    if not few:
        print(f"no confusion matrix of {len(names):,} classes, at most {CLASSES}")
        del ways["confusion"]
    for name, draw in ways.items():
        path = folder / "figures" / f"{name}_{tag}.png"
        if path.exists():
            print(f"kept  {path}, which is there already")
            continue
        with failures.spared(name.replace("_", "-") + " figure"):
            draw(path)
            print(f"wrote {path}")


def _next(held_out: bool) -> str:
    """What may come after, and where one may choose: on a validation split, if any."""
    where = "on --config.eval.split=validation"
    if not held_out:
        where = "on a validation split (train with\n      --config.data.validation=N)"
    return (
        "next: --config.eval.timesteps=N scores it at another T, and\n"
        "      --config.eval.average=K the mean of its last K checkpoints. Nothing is\n"
        f"      chosen on test: choose {where}"
    )
