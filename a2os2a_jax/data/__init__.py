"""Data by name: `load("digits")`. The protocol is in `pipeline`."""

import importlib
import inspect

from a2os2a_jax.data.pipeline import Dataset

SOURCES = {  # name -> module with a `load`, imported when asked for
    "digits": "a2os2a_jax.data.sources.digits",
    "fake": "a2os2a_jax.data.sources.fake",
    "recall": "a2os2a_jax.data.sources.recall",
}
PLANNED = (
    *("cifar10", "cifar100", "imagenet2012", "mnist", "fashion_mnist"),
    *("folder", "npz"),  # folder:PATH, npz:PATH
    *("cifar10_dvs", "dvs128_gesture", "nmnist"),
)


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
      validation: examples to hold out of the training ones, stratified, and the same
        ones whatever the seed; 0 for no such split.
      seed: of the run; what a source draws for training may depend on it (recall),
        held-out examples never do. The order is `pipeline.train_indices`'s.
      timesteps: frames of an example, for sources that have frames.
      **options: what only some sources know, e.g. pairs=8 for recall.
    Raises:
      ValueError: the name is unknown or not built, or the source cannot honour an
        argument.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: got {seed}, expected 0 to 2^32 - 1")
    if name not in SOURCES:
        state = "not built yet" if name.split(":")[0] in PLANNED else "unknown"
        raise ValueError(f"data.name {name!r} is {state}; built: {', '.join(SOURCES)}")
    source = importlib.import_module(SOURCES[name]).load
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
            expected = ", ".join(honoured)
            raise ValueError(f"data.{key}: got {value!r}, {name} takes: {expected}")
    if "seed" in honoured:
        given["seed"] = seed
    return source(**given)


def takes(name: str) -> tuple[str, ...]:
    """The arguments of `load` that the set of this name honours; () if unknown."""
    module = SOURCES.get(name, SOURCES.get(name.split(":")[0]))
    if module is None:
        return ()
    return tuple(inspect.signature(importlib.import_module(module).load).parameters)
