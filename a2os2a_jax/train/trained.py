"""A trained run as it is evaluated: which weights, on which data, at which T and size.

The keys `eval.*` of a config say so. Nothing here looks at a score of the test set: the
"best" checkpoint is the best on the validation split.
"""

import copy
import os
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax import data as datasets
from a2os2a_jax.files import expanded
from a2os2a_jax.train import finetune, parallel
from a2os2a_jax.train.average import average
from a2os2a_jax.train.checkpoint import Checkpoints
from a2os2a_jax.train.setup import Parts, prepare
from a2os2a_jax.train.step import TrainState
from a2os2a_jax.train.workdir import changed_data, open_run

EMA, PLAIN = "average of the weights (EMA)", "weights"


class Trained(NamedTuple):
    """Weights of a run, and what they are to be scored on.

    Attributes:
      parts: data and model, those of the training but for `changed`.
      variables: params and batch_stats, for `parts.model.apply`.
      steps: of the checkpoints they are the mean of, ascending; mostly one.
      weights: EMA or PLAIN.
      changed: what differs from the training, of the keys average (a number of
        checkpoints), ema (False: weights that have an average, which is not used),
        data, timesteps, size; and data.changed, what `data.changed` lets pass.
      about: of weights that are of no run here (`init_from`), where they are from.
    """

    parts: Parts
    variables: dict[str, Any]
    steps: tuple[int, ...]
    weights: str
    changed: dict[str, Any]
    about: dict[str, Any] | None = None


def load(config: ConfigDict, workdir: str | os.PathLike) -> Trained:
    """The weights that `eval.checkpoint`, `average` and `ema` name, ready to be scored.

    Where `workdir` holds no run, those that `init_from` names, as they are: `ema` is
    then which of two is taken.

    Raises:
      ValueError: no run of this config is there, it has not the checkpoints asked for,
        or its model does not fit `eval.data`, `timesteps` or `size`; see
        `finetune.whole`.
    """
    c, workdir = config.eval, expanded(workdir)
    if config.init_from is not None and not (workdir / "config.json").exists():
        return _untrained(config)
    home = config
    if _is_other(config):  # split and examples are then the other set's
        home = copy.deepcopy(config)
        home.eval.update(split="test", examples=None)
    of_training, checkpoints = open_run(home, workdir)
    parts, changed = _changed(config, of_training)
    abstract = of_training.abstract_state()
    states = _states(checkpoints, abstract, c.checkpoint, c.average)
    has_ema = abstract.ema is not None
    chosen = [s.judged if c.ema else s.variables for s in states.values()]
    if has_ema and not c.ema:
        changed = {"ema": False} | changed
    if len(chosen) > 1:
        changed = {"average": len(chosen)} | changed
    if differing := changed_data(workdir, of_training.dataset):
        changed |= {"data.changed": differing}
    return Trained(
        parts,
        average(chosen) if len(chosen) > 1 else chosen[0],
        tuple(states),
        EMA if has_ema and c.ema else PLAIN,
        changed,
    )


def _untrained(config: ConfigDict) -> Trained:
    """The weights of `init_from`, in the config's model."""
    unset = configs.default().eval
    for key in ("checkpoint", "average"):
        if config.eval[key] != unset[key]:
            raise ValueError(
                f"eval.{key}: got {config.eval[key]!r}, expected {unset[key]!r}: there "
                f"is one set of weights, {config.init_from}"
            )
    of_training = prepare(config)
    fresh = of_training.abstract_state().variables
    path, ema = config.init_from, config.eval.ema
    variables, about, notes = finetune.whole(path, fresh, config.model.name, ema)
    averaged = about.get("weights") == "average"
    if averaged and not ema:
        raise ValueError(
            f"eval.ema: got False, expected True: the weights of {path} are an average"
        )
    print("\n".join([f"{EMA if averaged else PLAIN} of {path}", *notes]))
    parts, changed = _changed(config, of_training)
    if not ema and about.get("others"):
        changed = {"ema": False} | changed
    placed = parallel.put_whole(variables, parts.mesh)
    return Trained(parts, placed, (0,), EMA if averaged else PLAIN, changed, about)


def _states(
    checkpoints: Checkpoints, abstract: TrainState, which: str, count: int
) -> dict[int, TrainState]:
    """{step: state} of the checkpoint asked for and the count - 1 before it."""
    steps = checkpoints.steps()
    if which == "last":
        step = None
    elif which == "best":
        step = checkpoints.best()
        if step is None:
            raise ValueError(
                "eval.checkpoint: got 'best', expected 'last' or a step: no checkpoint "
                "has a score on a validation split (data.validation)"
            )
    elif not (which.isdecimal() and int(which) in steps):
        raise ValueError(
            f"eval.checkpoint: got {which!r}, expected last, best or a step there is: "
            f"{', '.join(map(str, steps)) or 'none yet'}"
        )
    else:
        step = int(which)

    def restore(step: int | None) -> tuple[int, TrainState]:
        restored = checkpoints.restore(abstract, step=step)
        if restored is None:
            of = "" if step is None else f" of step {step}"
            raise ValueError(
                f"workdir {checkpoints.directory.parent}: got no checkpoint{of}, "
                "expected one that loads"
            )
        return restored

    last, state = restore(step)
    wanted = [s for s in steps if s <= last][-count:]
    if len(wanted) < count:
        raise ValueError(
            f"eval.average: got {count}, expected at most {len(wanted)}, the "
            f"checkpoints kept up to step {last} (train.keep)"
        )
    return dict(map(restore, wanted[:-1])) | {last: state}


def _is_other(config: ConfigDict) -> bool:
    return config.eval.data not in (None, config.data.name)


def _changed(config: ConfigDict, trained: Parts) -> tuple[Parts, dict[str, Any]]:
    """(parts of what is scored, what differs from the training)."""
    c, changed = config.eval, {}
    if _is_other(config):
        changed["data"] = c.data
    if c.timesteps not in (None, config.model.timesteps):
        changed["timesteps"] = c.timesteps
    images = config.model.stem != "tokens"
    if c.size is not None and not images:
        raise ValueError(f"eval.size: got {c.size}, expected None where there are none")
    if images and c.size not in (None, trained.dataset.shape[-2]):
        changed["size"] = c.size
    if not changed:
        return trained, changed
    try:
        parts = prepare(_variant(config, trained))
    except ValueError as error:
        asked = ", ".join(f"eval.{key}={value}" for key, value in changed.items())
        raise ValueError(f"{asked}: {error}") from error
    old, new = trained.dataset, parts.dataset
    if (new.classes, new.shape[-1]) != (old.classes, old.shape[-1]):
        raise ValueError(
            f"eval.data: got {new.name} of {_width(new)}, expected as many as "
            f"{old.name} has, on which the model was trained: {_width(old)}"
        )
    if "timesteps" in changed and len(new.shape) == (4 if images else 3):
        raise ValueError(
            f"eval.timesteps: got {c.timesteps}, expected None: an example of "
            f"{new.name} has frames of its own"
        )
    _check_variables(trained, parts, changed)
    return parts, changed


def _width(dataset: datasets.Dataset) -> str:
    return f"{dataset.classes} classes and {dataset.shape[-1]} channels"


def _variant(config: ConfigDict, trained: Parts) -> ConfigDict:
    """The config of a run that would be trained on what is to be scored."""
    c, new, old = config.eval, copy.deepcopy(config), trained.dataset
    if pool := getattr(trained.model, "pool", None):
        new.model.pool = pool  # else its default would follow the new size
    if c.timesteps is not None:
        new.model.timesteps = c.timesteps
    if _is_other(config):
        image = {"size": old.shape[-2]} if config.model.stem != "tokens" else {}
        width = {"classes": old.classes, "channels": old.shape[-1]}
        wanted = config.data.to_dict() | image | width | {"area": None}
        takes = datasets.takes(c.data)
        unset = configs.default().data
        new.data.update({k: v if k in takes else unset[k] for k, v in wanted.items()})
        new.data.name = c.data
        new.data.validation = config.data.validation if c.split == "validation" else 0
        # nothing is trained on it: it may be smaller than a batch
        new.train.update(batch=trained.mesh.size, accumulate=1)
        new.optim.warmup_epochs = 0.0
    if c.size is not None:
        new.data.size = c.size
    new.augment = configs.default().augment
    return new


def _check_variables(trained: Parts, parts: Parts, changed: dict[str, Any]) -> None:
    """ValueError unless weights of the one fit the other."""
    old, new = (
        {jax.tree_util.keystr(k, simple=True, separator="/"): v.shape for k, v in flat}
        for flat in (
            jax.tree_util.tree_leaves_with_path(p.abstract_state().variables)
            for p in (trained, parts)
        )
    )
    differing = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    if differing:
        name = differing[0]
        raise ValueError(
            f"{', '.join(f'eval.{key}' for key in changed)}: got {name} of shape "
            f"{new.get(name)}, expected {old.get(name)}: weights of this model depend "
            "on it"
        )
