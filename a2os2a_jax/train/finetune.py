"""Starting from what another run learnt: where its weights are, and what fits.

No parameter of the models here depends on T or on the resolution, so both may differ.
A head of another number of classes is initialised anew, and said to be. Any other
difference is an error: half a network taken over would train, and mean nothing.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax import zoo
from a2os2a_jax.files import expanded
from a2os2a_jax.interop import torch_files, torch_weights, weights
from a2os2a_jax.train import parallel
from a2os2a_jax.train.checkpoint import Checkpoints
from a2os2a_jax.train.step import TrainState
from a2os2a_jax.train.workdir import read_json

HEAD = "params/head/"
_EXPECTED = (
    "expected a run's DIR, DIR@best or DIR@STEP, a file of weights "
    f"({', '.join(torch_files.SUFFIXES)}) or FILE@ENTRY of it, or zoo:NAME"
)


def source(path: str, average: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables at `path`, on the host, and where they come from.

    Args:
      path: what `init_from` takes: the directory of a run, for its last checkpoint, or
        DIR@best, DIR@STEP for another; a file that `interop.weights.save` wrote, or a
        PyTorch state dict that `interop.torch_weights` reads, FILE@ENTRY for another
        in that file; or zoo:NAME, weights that come with the package.
      average: take the moving average of the weights where there is one besides.
    Returns:
      (variables, about), about being JSON values: path, step, weights ("average" of the
      run's `train.ema`, else "plain"), others (which were not taken), commit, and the
      config of the run; of a file its path and sha256, and what it holds about itself,
      of a state dict its family, weights, others, entry, and notes for people.
    Raises:
      ValueError: there is nothing, or no run, or no such checkpoint, or a damaged file.
      OSError: the checkpoint cannot be read.
    """
    place, which = _locate(path)
    if place.is_dir():
        variables, about = of_run(place, which or "last", average)
    elif place.is_file() and place.name.lower().endswith(torch_files.SUFFIXES):
        variables, kept = _of_file(place, average, which)
        digest = hashlib.sha256(place.read_bytes()).hexdigest()
        about = kept | {"sha256": digest}
        if "path" in kept:
            about["exported_from"] = kept["path"]
    else:
        what = "is a file of another kind" if place.exists() else "does not exist"
        raise ValueError(f"init_from: got {path}, which {what}; {_EXPECTED}")
    return variables, about | {"path": str(path)}


def _of_file(
    place: Path, average: bool, entry: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables, what the file holds about itself), of ours or of PyTorch's names."""
    if weights.written_here(place):
        if entry is not None:
            raise ValueError(
                f"init_from: got {place}@{entry}, expected {place}: this program wrote "
                "it, and it holds one set of weights"
            )
        return weights.load(place)
    try:
        found = torch_files.choose(place, average, entry)
        family = torch_weights.recognise(found.arrays)
        variables = torch_weights.to_variables(found.arrays, family)
    except ValueError as error:
        text = str(error).removeprefix(f"torch_weights {place}: ")
        raise ValueError(f"init_from {place}: {text}") from error
    return variables, {"family": family, **found.about, "notes": found.notes}


def of_run(
    folder: Path, which: str = "last", average: bool = True, key: str = "init_from"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`source` of a run; neither its data nor its optimizer need be at hand.

    Args:
      which: "last", "best" (on the validation split), or a step.
      average: take the moving average of the weights where there is one.
      key: of the config, that asks for it; errors name it. With another than
        init_from, `folder` is the workdir.
    """
    checkpoints = Checkpoints(folder / "checkpoints")
    steps = checkpoints.steps()
    if not (folder / "config.json").exists() or not steps:
        lacks = "checkpoint" if (folder / "config.json").exists() else "config.json"
        if key != "init_from":
            raise ValueError(
                f"workdir {folder}: no {lacks} yet, expected a run that has trained"
            )
        raise ValueError(f"{key}: got {folder}, which has no {lacks}; {_EXPECTED}")
    if which == "best":
        step = checkpoints.best()
        if step is None:
            raise ValueError(
                f"{key}: got {folder}@best, expected last or a step: no checkpoint has "
                "a score on a validation split"
            )
    else:
        step = steps[-1] if which == "last" else int(which) if which.isdecimal() else -1
    if step not in steps:
        raise ValueError(
            f"{key}: got {folder}@{which}, expected last, best or a step there is: "
            f"{', '.join(map(str, steps))}"
        )
    names = checkpoints.leaves(step)
    has_average = any(name.startswith("ema/") for name in names)
    averaged = average and has_average
    prefix = "ema/" if averaged else ""
    wanted = tuple(f"{prefix}{collection}/" for collection in weights.COLLECTIONS)
    arrays = checkpoints.read(step, [n for n in names if n.startswith(wanted)])
    arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    result = folder / "result.json"
    about = {
        "step": step,
        "weights": "average" if averaged else "plain",
        **({"others": ["average"]} if has_average and not averaged else {}),
        "commit": read_json(result).get("commit") if result.exists() else None,
        "config": read_json(folder / "config.json"),
    }
    return traverse_util.unflatten_dict(arrays, sep="/"), about


def transfer(
    variables: Mapping[str, Any], fresh: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """`fresh`, with the values of `variables` wherever name and shape are the same.

    Args:
      variables: of another model, {"params": ..., "batch_stats": ...}.
      fresh: of the model to train: arrays, or jax.ShapeDtypeStruct to see what fits.
    Returns:
      (variables, notes). Dtypes are those of `fresh`. The head is that of `fresh` where
      there is none, or one of another number of classes; notes say so, a line each.
    Raises:
      ValueError: a tensor is missing, too many, of another shape, or not finite; names
        them and the setting that probably differs.
    """
    there = traverse_util.flatten_dict(dict(variables), sep="/")
    here = traverse_util.flatten_dict(dict(fresh), sep="/")
    anew = _other_head(there, here)
    differing = []
    names = sorted((there.keys() | here.keys()) - anew)
    for name in sorted(names, key=lambda name: not name.startswith("params/")):
        old, new = (
            _shape(tree[name]) if name in tree else None for tree in (there, here)
        )
        if old != new:
            differing.append(f"{name} is {old or 'missing'} there, {new or 'not'} here")
    if differing:
        more = f"; and {len(differing) - 3} more" * (len(differing) > 3)
        raise ValueError(
            f"{len(differing)} tensors differ: {'; '.join(differing[:3])}{more}. "
            f"Probably {_why(there, here)}"
        )
    taken, cast = {}, set()
    for name, leaf in here.items():
        if name in anew:
            taken[name] = leaf
            continue
        value = np.asarray(there[name])
        if value.dtype != leaf.dtype:
            cast.add(f"{value.dtype} there, {leaf.dtype} here")
        taken[name] = value.astype(leaf.dtype)
        if not np.isfinite(taken[name]).all():
            raise ValueError(f"{name} holds NaN or infinity, expected finite numbers")
    notes = []
    if anew:
        name = min(anew)
        old = f"{np.shape(there[name])[-1]} classes" if name in there else "none"
        more = "" if name in there else " classes"
        new = f"{here[name].shape[-1]}{more}"
        notes.append(f"head: {old} there, {new} here: initialised anew")
    elif any(name.startswith(HEAD) for name in here):
        notes.append("head: as many classes there as here: taken over")
    notes += [f"dtype: {line}: converted" for line in sorted(cast)]
    return traverse_util.unflatten_dict(taken, sep="/"), notes


def check(
    path: str,
    workdir: str | os.PathLike,
    fresh: Mapping[str, Any],
    average: bool = True,
) -> None:
    """Finds in seconds that `init_from` cannot be taken, before anything is written.

    A run that has a checkpoint of its own goes on from that: nothing is looked at then.

    Args:
      path: see `source`.
      workdir: of the run that is to start.
      fresh: shapes of its variables.
      average: see `source`.
    Raises:
      ValueError, OSError: see `source` and `transfer`; or `path` is `workdir` itself.
    """
    if _locate(path)[0].resolve() == Path(workdir).resolve():
        raise ValueError(
            f"init_from: got {path}, the run's own workdir; expected another run. The "
            "same command without it goes on"
        )
    if not Checkpoints(Path(workdir) / "checkpoints").steps():
        _fitting(path, fresh, average)


def begin(
    path: str, state: TrainState, config: ConfigDict, mesh: Mesh
) -> tuple[TrainState, dict[str, Any], list[str]]:
    """(`state` with the weights of `path`, record for result.json, lines to print).

    Of weights that have an average, `eval.ema` takes that. An average of the new run
    starts from them too. The optimizer stays fresh: its moments are zero, and depend on
    no value.
    """
    variables, about, notes = _fitting(path, state.variables, config.eval.ema)
    # Copied on the devices: a step donates its state, these may share the host's memory
    copy = jax.jit(
        lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=parallel.whole(mesh)
    )
    placed = parallel.put_whole(variables, mesh)
    chex.assert_trees_all_equal_shapes_and_dtypes(placed, dict(state.variables))
    state = state._replace(**copy(placed))
    if state.ema is not None:
        state = state._replace(ema=copy(placed))
    theirs = about.pop("config", None)
    which = ", ".join(
        text
        for key, text in (
            ("step", f"step {about.get('step')}"),
            ("weights", f"{about.get('weights')} weights"),
        )
        if key in about
    )
    notes.insert(0, f"starting from {path}" + f" ({which})" * bool(which))
    theirs = theirs if isinstance(theirs, dict) else {}
    if about.get("family", config.model.name) != config.model.name:
        notes.append(
            f"family: named as {about['family']}'s there, {config.model.name} here: "
            "the same shapes, another function"
        )
    if theirs and (changed := _settings(theirs, configs.to_json(config))):
        notes.append(f"other than there: {'; '.join(changed)}")
    return state, about, notes


def _locate(path: str) -> tuple[Path, str | None]:
    """(file or directory, what of it); what exists may have an @ in its name."""
    name = str(path)
    if name.startswith(zoo.PREFIX):
        try:
            return zoo.path(name), None
        except ValueError as error:
            raise ValueError(f"init_from: {error}") from error
    name = str(expanded(name))
    if Path(name).exists() or "@" not in name:
        return Path(name), None
    place, _, which = name.rpartition("@")
    return (Path(place), which) if Path(place).exists() else (Path(name), None)


def whole(path: str, fresh: Mapping[str, Any], family: str, average: bool = True):
    """(variables, about, notes): all of the model at `path`, its head too, on the host.

    Args:
      family: that it has to be of, where the file tells it.
      average: see `source`.
    Raises:
      ValueError, OSError: see `source` and `transfer`; or no head, one of other
        classes, or tensors named as another family's.
    """
    variables, about, notes = _fitting(path, fresh, average)
    if about.get("family", family) != family:
        raise ValueError(
            f"init_from {path}: got tensors named as {about['family']}'s, expected "
            f"those of model.name={family}"
        )
    if anew := [note for note in notes if note.endswith("initialised anew")]:
        head = anew[0].removesuffix(": initialised anew")
        raise ValueError(
            f"init_from {path}: {head}, expected as many; --mode=train makes a new one"
        )
    about.pop("config", None)
    return variables, about, notes


def _fitting(path: str, fresh: Mapping[str, Any], average: bool):
    """(variables, about, notes): what is at `path`, made to fit `fresh`."""
    variables, about = source(path, average)
    said = about.pop("notes", [])
    try:
        variables, notes = transfer(variables, fresh)
    except ValueError as error:
        family = about.get("family")
        of = f"; its tensors are named as {family}'s" if family else ""
        raise ValueError(f"init_from {path}: {error}{of}") from error
    return variables, about, [*said, *notes]


def _shape(leaf: Any) -> str:
    return f"[{','.join(map(str, np.shape(leaf)))}]"


def _other_head(there: Mapping[str, Any], here: Mapping[str, Any]) -> set[str]:
    """Names of the head, if only one has it, or it differs in its last axis alone."""
    old, new = ({n for n in tree if n.startswith(HEAD)} for tree in (there, here))
    if not old or old != new:
        return set() if old else new
    shapes = [(np.shape(there[n]), np.shape(here[n])) for n in new]
    other = {(a[-1:], b[-1:]) for a, b in shapes}
    rest = all(a[:-1] == b[:-1] for a, b in shapes)
    return new if rest and len(other) == 1 and all(a != b for a, b in other) else set()


def _traits(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What the shapes tell of a model, by the setting that decides it."""

    def axis(name: str, number: int):
        shape = np.shape(tree.get(name, ()))
        return shape[number] if -len(shape) <= number < len(shape) else None

    blocks = {m[0] for n in tree if (m := re.match(r"params/.*?block_\d+/", n))}
    parts = {m[1] for n in tree if (m := re.search(r"/attention/(\w+?)_linear/", n))}
    hidden = axis("params/block_0/mlp/fc1_linear/kernel", -1)
    stages = any(n.startswith("params/stage_1/") for n in tree)
    out = axis("params/block_0/mlp/fc2_linear/kernel", -1)
    dim = axis("params/head/kernel", 0) or out  # of a file without a head
    images = any(n.startswith("params/stem/conv_0/") for n in tree)
    first = "params/stem/conv_0/kernel" if images else "params/stem/linear/kernel"
    return {
        "depth (model.variant)": len(blocks),
        "dim (model.variant)": dim,
        "model.mlp_ratio": hidden // dim if hidden and dim else None,
        "model.stem": "of stages" if stages else "images" if images else "tokens",
        "channels of the data": axis(first, -2),
        "projections (model.attention)": " ".join(sorted(parts)) or "none",
        "model.attention.bias": any(n.endswith("/q_linear/bias") for n in tree),
        "model.neuron.learn_tau": any(n.endswith("_neuron/w") for n in tree),
    }


def _why(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The settings that differ, in words."""
    old, new = _traits(there), _traits(here)
    lines = [f"{k}: {old[k]} there, {new[k]} here" for k in new if old[k] != new[k]]
    return "; ".join(lines) or "a model of another kind"


def _settings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Settings of model and data that change what the weights compute, not shapes."""
    known = configs.flatten(configs.default())
    old, new = known | configs.flatten(old), known | configs.flatten(new)
    return [
        f"{key} was {old.get(key)!r}, is {new[key]!r}"
        for key in sorted(new)
        if key.startswith(("model.", "data.name", "data.size"))
        and old.get(key) != new[key]
    ]
