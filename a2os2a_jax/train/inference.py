"""A trained model without its training data: of a run, an export, or a file of weights.

What the model has to know of its input is in `data.json` of a run, since runs write it;
for an older one the data set is loaded.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax import models, zoo
from a2os2a_jax.data import pipeline
from a2os2a_jax.files import expanded
from a2os2a_jax.interop import export, loader, weights
from a2os2a_jax.train import finetune, setup
from a2os2a_jax.train.workdir import DATA, read_json

ZOO = "zoo:"
EXPECTED = (
    "expected the DIR of a run, an exported folder, zoo:NAME, or a .safetensors file "
    "that holds its config"
)


class Ready(NamedTuple):
    """Attributes:
    name: short, for titles and folders.
    config: as it was trained.
    spec: what its input is.
    model: folded if it comes from an export.
    variables: its own, {"params": ...} and perhaps "batch_stats".
    about: JSON values: "source", "step", "weights" (average or plain), "commit".
    exported: images -> logits, of the exported program; None if there is none.
    """

    name: str
    config: ConfigDict
    spec: pipeline.Spec
    model: nn.Module
    variables: dict[str, Any]
    about: dict[str, Any]
    exported: Callable[[jax.Array], jax.Array] | None = None


def config_of(place: str) -> ConfigDict:
    """The config that what is at `place` was trained with.

    Raises:
      ValueError: there is no run, no exported folder, no weights; or its config has
        keys that are unknown here.
    """
    place = str(expanded(place))
    return from_json(_config(place), place)


def from_json(config: Any, what: str) -> ConfigDict:
    """The inverse of `config.to_json`; keys of later versions have their defaults.

    Raises:
      ValueError: no object, or keys that no one here reads; in the name of `what`.
    """
    new = configs.default()
    known = configs.flatten(new)
    if not isinstance(config, dict):
        raise ValueError(f"{what}: got no config, expected an object of its keys")
    flat = configs.flatten(config)
    if extra := sorted(flat.keys() - known.keys()):
        raise ValueError(f"{what}: got the keys {', '.join(extra)}, which no one reads")
    try:
        new.update_from_flattened_dict(flat)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: a key of its config: {error}") from error
    return new


def _config(place: str) -> Any:
    folder = Path(place)
    if place.startswith(ZOO) or folder.suffix in weights.SUFFIXES:
        return _source(place)[1].get("config")
    if (folder / export.ABOUT).is_file():
        return export.read(folder).get("config")
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"workdir {place}: got neither config.json nor {export.ABOUT}, {EXPECTED}"
        )
    return read_json(folder / "config.json")


def load(config: ConfigDict, place: str) -> Ready:
    """What is at `place`, ready to answer; its data need not be at hand.

    Args:
      config: as it was trained (`config_of`), but for keys that may differ; of these
        eval.checkpoint and eval.ema choose the weights of a run.
      place: the directory of a run, an exported folder, zoo:NAME, or a file of weights.
    Raises:
      ValueError: there is nothing of this config, or it is damaged; an option that it
        cannot honour.
    """
    configs.check(config)
    place = str(expanded(place))
    if differing := configs.differences(_config(place), configs.to_json(config)):
        raise ValueError(
            f"workdir {place} holds a model of another config: {'; '.join(differing)}"
        )
    _check_eval(config, place)
    folder = Path(place)
    if place.startswith(ZOO) or folder.suffix in weights.SUFFIXES:
        return _of_file(config, place)
    if (folder / export.ABOUT).is_file():
        return _of_export(config, folder)
    return _of_run(config, folder)


def _check_eval(config: ConfigDict, place: str) -> None:
    """ValueError for an option of `eval` that changes what is loaded, and is not for
    here."""
    unset, folder = configs.default().eval, Path(place)
    keys = ["average", "data", "timesteps", "size"]
    if not (folder / "config.json").is_file() or (folder / export.ABOUT).is_file():
        keys += ["checkpoint", "ema"]  # there is one
    own = configs.flatten(_config(place))
    for key in keys:
        got = config.eval[key]
        if got not in (unset[key], own.get(f"eval.{key}", unset[key])):
            raise ValueError(
                f"eval.{key}: got {got!r}, expected {unset[key]!r} with {place}"
            )


def spec_of(config: ConfigDict, folder: Path) -> pipeline.Spec:
    """Of data.json of the run; of the data set, if the run is older than that."""
    path = folder / DATA
    if path.exists():
        return pipeline.Spec.from_json(read_json(path), str(path))
    return setup.load_data(configs.filled(config)).spec


def _of_run(config: ConfigDict, folder: Path) -> Ready:
    c = config.eval
    variables, about = finetune.of_run(
        folder, str(c.checkpoint), average=c.ema, key="eval.checkpoint"
    )
    spec = spec_of(config, folder)
    about = {k: about[k] for k in ("step", "weights", "commit")}
    return _fitting(
        Ready(
            _name(folder),
            config,
            spec,
            setup.make_model(config, spec),
            variables,
            {"source": str(folder), **about},
        )
    )


def _source(place: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if not place.startswith(ZOO) and not Path(place).is_file():
        raise ValueError(f"workdir {place}: no such file, {EXPECTED}")
    try:
        return finetune.source(place)
    except ValueError as error:  # which speaks of a key that nobody set here
        text = str(error).removeprefix("init_from: ")
        raise ValueError(f"workdir: {text}") from error


def _of_file(config: ConfigDict, place: str) -> Ready:
    variables, about = _source(place)
    spec = pipeline.Spec.from_json(about.get("data"), f"{place}: data")
    about = {k: about.get(k) for k in ("step", "weights", "commit", "sha256")}
    name = place.removeprefix(ZOO) if place.startswith(ZOO) else _stem(Path(place))
    return _fitting(
        Ready(
            name,
            config,
            spec,
            setup.make_model(config, spec),
            variables,
            {"source": place, **about},
        )
    )


def _of_export(config: ConfigDict, folder: Path) -> Ready:
    about = export.read(folder)
    try:
        call = loader.load(folder)
    except (OSError, KeyError, ValueError, TypeError) as error:
        text = f"no {error}" if isinstance(error, KeyError) else str(error)
        text = text.removeprefix(f"{folder}: damaged: ")
        raise ValueError(f"export {folder}: damaged: {text}") from error
    variables, _ = weights.load(folder / export.WEIGHTS)
    spec = pipeline.Spec.from_json(about.get("data"), f"{folder}: data")
    model, _ = folded(setup.make_model(config, spec), spec)
    kept = {k: about.get(k) for k in ("step", "weights", "commit")}
    kept |= {"source": str(folder), "sha256": about["sha256"][export.WEIGHTS]}
    return _fitting(Ready(_name(folder), config, spec, model, variables, kept, call))


def folded(model: nn.Module, spec: pipeline.Spec, variables: Any = None):
    """(folded model, its variables or their shapes), as they are exported."""
    if variables is None:
        variables = _shapes(model, spec)
    tokens = spec.shape[-2] if model.stem == "tokens" else None
    return models.fold(model, variables, tokens=tokens)


def _shapes(model: nn.Module, spec: pipeline.Spec) -> Any:
    images = jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32)
    init = model.init
    return jax.eval_shape(lambda k, x: init(k, x), jax.random.key(0), images)


def _fitting(ready: Ready) -> Ready:
    """The same on devices; ValueError unless the variables are those of the model."""
    want = _shapes(ready.model, ready.spec)
    want = {c: v for c, v in want.items() if c in weights.COLLECTIONS}
    here, there = (
        {
            name: (tuple(x.shape), str(x.dtype))
            for name, x in traverse_util.flatten_dict(dict(t), sep="/").items()
        }
        for t in (want, ready.variables)
    )
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise ValueError(
                f"workdir {ready.about['source']}: {name} is "
                f"{there.get(name, 'missing')}, expected {here.get(name, 'none')}"
            )
    return ready._replace(variables=jax.device_put(ready.variables))


def _stem(file: Path) -> str:
    """photos.safetensors -> photos, photos/weights.safetensors -> photos."""
    if file.stem == zoo.WEIGHTS.partition(".")[0]:
        return file.resolve().parent.name or file.stem
    return file.stem


def _name(folder: Path) -> str:
    """runs/digits -> digits, runs/digits/export -> digits-export."""
    folder = folder.resolve()
    if (folder.parent / "config.json").is_file():
        return f"{folder.parent.name}-{folder.name}"
    return folder.name or "model"
