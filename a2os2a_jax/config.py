"""Every key a config has, with its default, and what a config must satisfy.

A file in `configs/` calls `default()` and changes what its task needs, so that every
key exists in every config and `--config.key=value` works everywhere. None leaves the
choice to whoever takes the value.
"""

import json
import math
from typing import Any

from ml_collections import ConfigDict, config_dict

_LATER = "not built yet"
NOT_BUILT = {  # key -> the only value it may have so far
    "init_from": None,
    "augment.crop": 0,
    "augment.randaugment": None,
    "augment.jitter": 0.0,
    "augment.erase": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.off_epoch": None,
    "optim.name": "adamw",
    "train.ema": None,
    "train.profile_steps": None,
    "mesh.fsdp": 1,
}
MAY_DIFFER = ("mesh.", "eval.", "train.stop_after", "train.log_steps")
MAY_DIFFER += ("train.profile_steps",)  # on resuming; any other key has to be the same


def default() -> ConfigDict:
    """All keys; names end in their unit; `optim.lr` is the peak at `train.batch`."""

    def unset(kind):  # one reference for each key: shared ones would change together
        return config_dict.placeholder(kind)

    c = ConfigDict()
    c.seed = 0
    c.dtype = "float32"  # of the computation: float32, bfloat16, float64
    c.init_from = unset(str)
    c.data = dict(
        name="digits",
        data_dir=unset(str),
        size=unset(int),  # pixels
        classes=unset(int),
        channels=unset(int),
        timesteps=unset(int),  # frames of an example; None for static images
        pairs=unset(int),  # (key, value) tokens of recall
        validation=0,  # training examples held out
    )
    c.model = dict(
        name="columnar",
        variant="2-64",
        timesteps=4,
        heads=unset(int),
        pool=unset(str),
        shortcut="full",
        stem="sps",
        readout="mean",
        mlp_ratio=4,
        remat=False,
    )
    c.model.attention = dict(
        kind="a2os2a",
        order="auto",
        k=unset(str),
        v=unset(str),
        scale=unset(float),
        v_th=unset(float),
        k_gain=1.0,
        freeze=unset(str),  # letters of "qkv": these weights stay as initialised
        normalise=unset(str),  # sqrt, pow2 or shiftmax, instead of a scale
        projection=True,
    )
    c.model.neuron = dict(
        rule="paper",
        decay_input=False,
        tau=2.0,
        v_th=1.0,
        v_reset=0.0,
        soft_reset=False,
        detach_reset=True,
        learn_tau=False,
        surrogate="atan",
    )
    c.augment = dict(
        flip=False,
        shift=0.0,  # pixels
        rotate=0.0,  # degrees
        zoom=0.0,
        crop=0,
        randaugment=unset(str),
        jitter=0.0,
        erase=0.0,
        mixup=0.0,
        cutmix=0.0,
        off_epoch=unset(int),  # augment.mixup and cutmix stop here
    )
    c.optim = dict(
        name="adamw",
        lr=1e-3,
        warmup_lr=1e-6,
        min_lr=1e-5,
        warmup_epochs=0.0,
        weight_decay=0.06,
        clip=unset(float),  # global norm of the gradient
    )
    c.train = dict(
        batch=64,
        epochs=1.0,
        steps=unset(int),  # wins over epochs
        stop_after=unset(int),  # end early, at this step, with the schedule unchanged
        label_smoothing=0.0,
        log_steps=50,
        save_epochs=10.0,
        ema=unset(float),
        profile_steps=unset(str),
    )
    c.eval = dict(
        batch=256,
        examples=unset(int),  # the first so many of the split; None for all
        split="test",  # what the end of training is judged on
        epochs=1.0,  # how often the validation split is scored, if there is one
    )
    c.mesh = dict(data=-1, fsdp=1)  # devices; -1 for all
    return c


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"model.attention.kind": "a2os2a", ...} of a ConfigDict or nested dict."""
    flat = {}
    for key, value in tree.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as plain nested dicts that JSON holds, None for what is unset."""
    return json.loads(json.dumps(config.to_dict()))


def check(config: ConfigDict) -> None:
    """What no other place would notice early.

    Raises:
      ValueError: a missing key, one whose feature is not built yet, or a value out of
        its range; names the key, what was got and what was expected.
    """
    flat, known = flatten(config), flatten(default())
    if missing := sorted(set(known) - set(flat)):
        raise ValueError(f"config: {missing} missing; start from config.default()")
    if extra := sorted(set(flat) - set(known)):
        raise ValueError(f"config: got {extra}, which no one reads")
    for key, only in NOT_BUILT.items():
        if flat[key] != only:
            raise ValueError(f"{key}: {flat[key]!r} is {_LATER}, expected {only!r}")
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}: got {value}, expected a finite number")
    for key in ("train.batch", "eval.batch", "train.log_steps"):
        _above(key, flat[key], 0)
    for key in ("train.steps", "train.stop_after", "eval.examples"):
        if flat[key] is not None:
            _above(key, flat[key], 0)
    for key in ("train.epochs", "train.save_epochs", "eval.epochs", "optim.lr"):
        _above(key, flat[key], 0)
    if flat["optim.clip"] is not None:
        _above("optim.clip", flat["optim.clip"], 0)
    for key in ("warmup_epochs", "warmup_lr", "min_lr", "weight_decay"):
        if not flat[f"optim.{key}"] >= 0:
            got = flat[f"optim.{key}"]
            raise ValueError(f"optim.{key}: got {got}, expected >= 0")
    if flat["optim.min_lr"] > flat["optim.lr"]:
        got, lr = flat["optim.min_lr"], flat["optim.lr"]
        raise ValueError(f"optim.min_lr: got {got}, expected at most optim.lr = {lr}")
    if not 0 <= flat["train.label_smoothing"] < 1:
        got = flat["train.label_smoothing"]
        raise ValueError(f"train.label_smoothing: got {got}, expected 0 <= it < 1")


def _above(key: str, value: float, low: float) -> None:
    if not value > low:
        raise ValueError(f"{key}: got {value}, expected > {low}")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys in which two nested configs differ so that one cannot go on as the other."""
    old, new = flatten(old), flatten(new)
    return [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(MAY_DIFFER)
    ]
