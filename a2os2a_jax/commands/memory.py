"""What to do where memory ran out, by what the program was doing then."""

import contextlib
import traceback
from pathlib import Path

from ml_collections import ConfigDict

from a2os2a_jax import data as datasets
from a2os2a_jax.commands import plan
from a2os2a_jax.train import setup

SCORES = ("eval", "energy", "probe", "figures")  # modes that go through a split
_OF_DATA = ("setup.py:load_data", "parallel.py:put_whole")
_OF_SCORES = ("evaluate.py", "figures.py")


def advice(error: BaseException, mode: str, config: ConfigDict) -> str:
    """The keys of this config that take the memory, and what would take less."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(f.filename).name}:{f.name}" for f in frames]
    if any(place.startswith(_OF_DATA) for place in places):
        return f"expected {_less_data(config)}"
    scores = any(place.startswith(_OF_SCORES) for place in places)
    if mode in SCORES or (mode == "train" and scores):
        return f"expected a smaller eval.batch than {config.eval.batch}"
    if mode == "preview":
        return f"expected a smaller train.batch than {config.train.batch}"
    if mode == "train":
        return f"expected {_less_training(config)}{_planned(config)}"
    return "expected a smaller model: model.variant, model.timesteps, data.size"


def _less_training(config: ConfigDict) -> str:
    t = config.train
    less = [f"a smaller train.batch than {t.batch}"]
    parts = [n for n in range(t.accumulate + 1, t.batch + 1) if t.batch % n == 0]
    if parts:
        less.append(f"train.accumulate={parts[0]} or more")
    if not config.model.remat:
        less.append("model.remat=True, which computes blocks again")
    return ", or ".join(less)


def _less_data(config: ConfigDict) -> str:
    name, d = config.data.name, config.data
    less = []
    if "resident_gib" in datasets.takes(name) and d.resident_gib != 0:
        less.append("data.resident_gib=0, which streams the data")
    if d.size is not None:
        less.append(f"a smaller data.size than {d.size}")
    return ", or ".join([*less, f"less data than {name}"][:2])


def _planned(config: ConfigDict) -> str:
    """The estimate of --mode=plan, for one device; "" where there is none."""
    with contextlib.suppress(Exception):
        held = plan.numbers(config, setup.prepare(config))["mib"]
        total = sum(size for name, size in held.items() if name != "checkpoint")
        return f"; --mode=plan estimates {total:.0f} MiB beside the activations"
    return ""
