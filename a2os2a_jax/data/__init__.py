"""Data by name: `load("digits")`. The protocol is in `pipeline`."""

import importlib
import inspect

from a2os2a_jax.data.pipeline import MOST_CLASSES, Dataset

_HOME = "a2os2a_jax.data.sources"
SOURCES = {  # name -> module with a `load`, imported when asked for
    "digits": f"{_HOME}.digits",
    "fake": f"{_HOME}.fake",
    "recall": f"{_HOME}.recall",
    "cifar10": f"{_HOME}.tfds",
    "cifar100": f"{_HOME}.tfds",
    "fashion_mnist": f"{_HOME}.tfds",
    "imagenet2012": f"{_HOME}.tfds",
    "mnist": f"{_HOME}.tfds",
    "cifar10_dvs": f"{_HOME}.events",
    "dvs128_gesture": f"{_HOME}.events",
    "ncaltech101": f"{_HOME}.events",
    "nmnist": f"{_HOME}.events",
    "nmnist_sample": f"{_HOME}.events",
}
SCHEMES = {  # of names that say where: "folder:photos", "npz:a.npz", "tfds:eurosat/rgb"
    "folder": f"{_HOME}.folder",
    "npz": f"{_HOME}.npz",
    "tfds": f"{_HOME}.tfds",
}


def module_of(name: str) -> tuple[str | None, str]:
    """(module, what its `load` is to call the set) of a data.name; (None, "")."""
    scheme, colon, rest = name.partition(":")
    if colon and rest:
        return SCHEMES.get(scheme), rest
    return SOURCES.get(name), name


def load(
    name: str,
    *,
    size: int | None = None,
    classes: int | None = None,
    data_dir: str | None = None,
    validation: int = 0,
    seed: int = 0,
    timesteps: int | None = None,
    **options,
) -> Dataset:
    """The set of this name; None leaves the choice to the source.

    Args:
      size: height and width of an image, in pixels.
      classes: number of classes.
      data_dir: where files are, or go.
      validation: examples to hold out of the training ones, stratified (of gestures,
        whole people), and the same ones whatever the seed; 0 for no such split.
      seed: of the run; what a source draws for training may depend on it (recall),
        held-out examples never do. The order is `pipeline.train_indices`'s.
      timesteps: frames of an example, for sources that have frames.
      **options: what only some sources know, e.g. pairs=8 for recall.
    Raises:
      ValueError: the name is unknown, or the source cannot honour an argument.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: got {seed}, expected 0 to 2^32 - 1")
    if classes is not None and not 1 <= classes <= MOST_CLASSES:
        raise ValueError(f"data.classes: got {classes}, expected 1 to {MOST_CLASSES:,}")
    module, called = module_of(name)
    if module is None:
        known = ", ".join([*SOURCES, *(f"{scheme}:..." for scheme in SCHEMES)])
        raise ValueError(f"data.name {name!r} is unknown, expected one of {known}")
    source = importlib.import_module(module).load
    honoured = inspect.signature(source).parameters
    given = options | {
        "size": size,
        "classes": classes,
        "data_dir": data_dir,
        "timesteps": timesteps,
        "validation": validation or None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in given.items():
        if key not in honoured:
            expected = ", ".join(k for k in honoured if k != "name")
            raise ValueError(f"data.{key}: got {value!r}, {name} takes: {expected}")
    if "seed" in honoured:
        given["seed"] = seed
    if "name" in honoured:
        given["name"] = called
    return source(**given)


def takes(name: str) -> tuple[str, ...]:
    """The arguments of `load` that the set of this name honours; () if unknown."""
    module, _ = module_of(name)
    if module is None:
        return ()
    parameters = inspect.signature(importlib.import_module(module).load).parameters
    return tuple(key for key in parameters if key != "name")
