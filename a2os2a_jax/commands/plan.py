"""--mode=plan: what a training would be, without training: layers, steps, memory."""

import math
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax.analysis import summary
from a2os2a_jax.data.pipeline import Dataset
from a2os2a_jax.files import expanded
from a2os2a_jax.modules import attention as attentions
from a2os2a_jax.modules import neuron as neurons
from a2os2a_jax.train import optim
from a2os2a_jax.train import workdir as workdirs
from a2os2a_jax.train.checkpoint import Checkpoints
from a2os2a_jax.train.evaluate import size_of
from a2os2a_jax.train.setup import Parts, prepare

WIDTH = 88


def run(config: ConfigDict, workdir: str | None = None) -> dict[str, Any]:
    """Prints the layers, the plan, and the command that trains; returns the numbers.

    Nothing is trained and nothing is written. With a workdir it says how far the run
    there is, or that this config may not use it.

    Raises:
      ValueError: a config that cannot be trained, as training itself would raise it.
    """
    parts = prepare(config)
    layers = parts.layers(config)
    found = numbers(config, parts) | {"parameters": summary.total(layers)}
    state, where = "", None
    if workdir is not None:
        state, where = standing(
            config, expanded(workdir), parts.total_steps, parts.dataset
        )
    rows = [*describe(config, parts, found), *([("workdir", where)] if where else [])]
    rule = "-" * 72
    lines = command(sys.argv, workdir or f"runs/{parts.dataset.name}")
    print("\n".join([summary.text(layers), rule, *_table(rows), rule]))
    print("wrote nothing: this is a plan")
    print(_next(state, workdir, lines))
    return found | {"standing": state}


def numbers(config: ConfigDict, parts: Parts) -> dict[str, Any]:
    """What follows from a config: counts, steps, rates, and MiB from shapes.

    Steps are of the optimizer. "mib" is of one device, which holds all of the state,
    and of one checkpoint.
    """
    t, last = config.train, parts.total_steps
    state, data = parts.abstract_state(), parts.dataset
    patterns = (*parts.model.frozen, *optim.patterns(config.optim.freeze))
    still = optim.named(state.params, patterns)
    counts = jax.tree.map(lambda x: math.prod(x.shape), state.params)
    decayed = jax.tree.map(
        lambda n, decays, fixed: n if decays and not fixed else 0,
        *(counts, optim.decayed(state.params), still),
    )
    frozen = jax.tree.map(lambda n, fixed: n if fixed else 0, counts, still)
    warmup = round(config.optim.warmup_epochs * parts.epoch_steps)
    rates = {"first": 0, "peak": warmup, "last": last - 1}
    held = data.validation is not None
    splits = {"train", config.eval.split} | ({"validation"} if held else set())
    mib = {
        "parameters": _mib(state.params),
        "optimizer": _mib(state.opt_state),
        "statistics": _mib(state.batch_stats),
        "average": _mib(state.ema),
        "data": _mib([data.split(name).resident for name in splits]),
    }
    save = max(1, round(t.save_epochs * parts.epoch_steps))
    validate = max(1, round(config.eval.epochs * parts.epoch_steps))
    return {
        "steps": last,
        "epoch_steps": parts.epoch_steps,
        "warmup_steps": warmup,
        "micro_batch": t.batch // t.accumulate,
        "lr": {name: float(parts.rate(at)) for name, at in rates.items()},
        "decayed": sum(jax.tree.leaves(decayed)),
        "frozen": sum(jax.tree.leaves(frozen)),
        "mib": mib | {"checkpoint": _mib(state)},
        "save_steps": save,
        "saves": -(-last // save),
        "validate_steps": validate if held else None,
        "validations": _times(last, save, validate) if held else 0,
        "judged": size_of(parts.dataset.split(config.eval.split), config.eval.examples),
    }


def _times(last: int, *every: int) -> int:
    """How many of the steps 1 to `last` are the last or a multiple of an `every`."""
    return len({last}.union(*(range(n, last + 1, n) for n in every)))


def _mib(tree: Any) -> float:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves) / 2**20


def describe(config: ConfigDict, parts: Parts, n: dict) -> list[tuple[str, str]]:
    """(what, in words) of the numbers."""
    m, o, t = configs.filled(config).model, config.optim, config.train
    data, mib = parts.dataset, n["mib"]
    held = data.validation.size if data.validation is not None else 0
    sizes = f"{data.train.size:,} training, {data.test.size:,} test"
    sizes += f", {held:,} validation" if held else ""
    attention = attentions.resolve(m.attention.to_dict())
    neuron = neurons.resolve(m.neuron.to_dict())
    accumulated = f"{t.batch} = {t.accumulate} x {n['micro_batch']}"
    changes = {k: v for k, v in config.augment.items() if v}
    if not config.augment.randaugment:  # else they say what of it
        changes = {k: v for k, v in changes.items() if k not in ("ops", "resample")}
    epochs = parts.total_steps / parts.epoch_steps
    drop = "" if data.train.fresh else ", which leaves out an incomplete last batch"
    return [
        ("data", f"{data.name}: {data.about}"),
        ("", f"{sizes} examples {list(data.shape)}, {data.classes} classes"),
        ("augment", _pairs(changes) or "nothing"),
        ("model", f"{m.name} {m.variant}, T = {m.timesteps}, {config.dtype}"),
        ("attention", f"{attention.pop('kind')}: {_pairs(attention) or 'no options'}"),
        ("neuron", f"{neuron.pop('rule')}: {_pairs(neuron)}"),
        *([("starts from", config.init_from)] if config.init_from else []),
        ("devices", workdirs.device(parts.mesh)),
        (
            "batch",
            f"{accumulated}; BN takes its statistics from {n['micro_batch']} examples "
            "at a time, of all devices together",
        ),
        (
            "steps",
            f"{n['steps']:,}, that is {epochs:.4g} epochs of {n['epoch_steps']:,} "
            f"steps{drop}",
        ),
        *([("", _stop(t.stop_after, n["steps"]))] if t.stop_after else []),
        (
            "optimizer",
            f"{o.name}, weight decay {o.weight_decay:g} on {n['decayed']:,} of "
            f"{n['parameters']:,} parameters, {n['frozen']:,} frozen, "
            + (f"gradient norm up to {o.clip:g}" if o.clip else "no clipping")
            + (f", layer decay {o.layer_decay:g}" if o.layer_decay != 1 else ""),
        ),
        ("rate", _rate(o.schedule, n)),
        ("loss", _loss(t)),
        (
            "memory",
            f"{mib['parameters']:.2f} MiB parameters + {mib['optimizer']:.2f} "
            f"optimizer + {mib['statistics']:.2f} BN statistics + "
            f"{mib['average']:.2f} average + {mib['data']:.2f} data, on every device; "
            f"in a step {mib['parameters']:.2f} of gradients. Activations come on top "
            "and are not counted",
        ),
        ("checkpoints", _checkpoints(t.keep, held, n)),
        (
            "validation",
            f"after every {n['validate_steps']:,} steps and at every save: "
            f"{n['validations']:,} times {held:,} examples"
            if held
            else "none (data.validation holds out examples)",
        ),
        (
            "at the end",
            f"{n['judged']:,} examples of {config.eval.split} are scored"
            + (", with the average of the weights" if t.ema is not None else ""),
        ),
    ]


def _pairs(options: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items() if v is not None)


def _stop(stop_after: int, steps: int) -> str:
    if stop_after >= steps:
        return f"train.stop_after = {stop_after:,} changes nothing"
    return f"ends early, after step {stop_after:,} (train.stop_after), unjudged"


def _rate(name: str, n: dict) -> str:
    first, peak, last = (f"{n['lr'][at]:.3g}" for at in ("first", "peak", "last"))
    if not n["warmup_steps"]:
        return f"{first} at the first step, no warm-up, {name} to {last} at the last"
    return (
        f"{first} at the first step, linear to {peak} after {n['warmup_steps']:,} "
        f"steps, {name} to {last} at the last"
    )


def _loss(t: ConfigDict) -> str:
    words = [t.loss, f"label smoothing {t.label_smoothing:g}"]
    if t.loss == "tet":
        words.append(f"tet_mse {t.tet_mse:g}")
    average = "no average of the weights" if t.ema is None else f"average {t.ema:g}"
    return ", ".join([*words, average])


def _checkpoints(keep: int, held: int, n: dict) -> str:
    each = n["mib"]["checkpoint"]
    most = min(keep, n["saves"]) + bool(held)
    best = " and the best on the validation split" if held else ""
    times = "once" if n["saves"] == 1 else f"{n['saves']:,} times"
    return (
        f"after every {n['save_steps']:,} steps and at the end, {times}, "
        f"{each:.2f} MiB each before compression; the last {keep}{best} stay: at most "
        f"{most * each:.2f} MiB, an estimate"
    )


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows) + 2
    lines = []
    for name, text in rows:
        indents = dict(initial_indent=name.ljust(width), subsequent_indent=" " * width)
        how = dict(break_on_hyphens=False, break_long_words=False)
        lines += textwrap.wrap(text, WIDTH, **how, **indents)
    return lines


# ---- the workdir, and the command


def standing(
    config: ConfigDict, folder: Path, steps: int, dataset: Dataset | None = None
) -> tuple[str, str]:
    """(state, in words) of a workdir: "new", "started", "finished" or "taken".

    Reads only. "taken": training with this config, or on `dataset`, would be refused.
    """
    path = folder / "config.json"
    if not path.exists():
        if not workdirs.is_free(folder):
            return "taken", f"{folder} holds files that no run made: take another"
        if folder.exists() and not folder.is_dir():
            return "taken", f"{folder} is a file: take another"
        return "new", f"{folder}, nothing there yet"
    mine = configs.to_json(config)
    if differing := configs.differences(workdirs.read_json(path), mine):
        text = "; ".join(differing)
        if not workdirs.has_trained(folder):
            return "new", f"{folder}, where nothing was trained with another config"
        return "taken", f"{folder} holds a run of another config: {text}. Take another"
    differing = workdirs.changed_data(folder, dataset) if dataset else []
    if differing and not config.data.changed:
        text = "; ".join(differing)
        return (
            "taken",
            f"{folder} holds a run of other data: {text}. Take another, or "
            "--config.data.changed=True",
        )
    if (folder / "result.json").exists():
        return "finished", f"{folder} holds this run, finished after {steps:,} steps"
    last = max(Checkpoints(folder / "checkpoints").steps(), default=0)
    share = f"{100 * last / steps:.0f} %"
    return (
        "started",
        f"{folder} holds this run, with a checkpoint of step {last:,} of {steps:,} "
        f"({share})"
        if last
        else f"{folder} holds this run, without a checkpoint: it starts at step 0",
    )


def command(argv: Sequence[str], workdir: str) -> str | None:
    """The command line that trains what `argv` plans; None if it is not this program's.

    `workdir` is added where `argv` names none.
    """
    if not argv or Path(argv[0]).parts[-2:] != ("a2os2a_jax", "main.py"):
        return None
    kept, words = [], iter(argv[1:])
    for word in words:
        flag, _, value = word.partition("=")
        if flag.lstrip("-") == "mode":
            if not value:
                next(words, None)
        else:
            kept.append(word)
    if not any(w.partition("=")[0].lstrip("-") == "workdir" for w in kept):
        kept.append(f"--workdir={workdir}")
    return shlex.join(["python", "-m", "a2os2a_jax.main", *kept])


def _next(state: str, workdir: str | None, line: str | None) -> str:
    if state == "finished":
        return "next: the same command with --mode=eval scores it again"
    if state == "taken":
        return "next: the same command with another --workdir"
    what = "goes on with it" if state == "started" else "trains it"
    if line is not None:
        return f"next: {line}\n      {what}"
    where = "" if workdir is not None else ", with a --workdir,"
    return f"next: the same command without --mode=plan{where} {what}"
