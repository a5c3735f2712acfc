"""Every key a config has, with its default, and what a config must satisfy.

A file in `configs/` calls `default()` and changes what its task needs, so that every
key exists in every config and `--config.key=value` works everywhere. None leaves the
choice to whoever takes the value.
"""

import copy
import json
import math
import os
import traceback
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict, config_dict

_LATER = "not built yet"
NOT_BUILT = {  # key -> the only value it may have so far
    "train.profile_steps": None,
    "mesh.fsdp": 1,
}
MOST = 2**31 - 1  # of an integer on a device
_A = {int: "an integer", float: "a number", bool: "True or False", str: "a word"}
_LIBRARY = {"model.neuron.decay_input": True, "model.neuron.surrogate": "sigmoid"}


def _own(attention: str, readout: str, residual: str, stem: str | None):
    """A row of OWN."""
    keys = dict(readout=readout, residual=residual, stem=stem)
    own = {f"model.{key}": value for key, value in keys.items() if value is not None}
    own["model.attention.kind"] = attention
    return own


# model.name -> its own choice where None leaves it (models.families.FAMILIES)
OWN = {
    "columnar": _own("a2os2a", "mean", "membrane", "sps")
    | {"model.neuron.decay_input": False, "model.neuron.surrogate": "atan"},
    "spike_driven": _own("sdsa", "membrane", "membrane", "sps") | _LIBRARY,
    "spikformer": _own("ssa", "mean", "spikes", "sps") | _LIBRARY,
    "spikingformer": _own("ssa", "potential", "membrane", "tokenizer") | _LIBRARY,
    "qkformer": _own("ssa", "mean", "spikes", None) | _LIBRARY,
    "spikingresformer": _own("dssa", "potential", "membrane", None)
    | _LIBRARY
    | {"model.neuron.surrogate": "atan"},
}
# On resuming; any other key has to be the same.
MAY_DIFFER = ("mesh.", "eval.", "train.stop_after", "train.log_steps")
MAY_DIFFER += ("train.profile_steps", "data.workers")
# the data themselves are compared: see train.workdir
MAY_DIFFER += ("data.data_dir", "data.changed")


def load(path: str) -> ConfigDict:
    """The config of FILE, or of FILE:ARGUMENT, which its `get_config` is given.

    Raises:
      ValueError: there is no such file, it fails in whatever way, or gives no config.
    """
    name, colon, argument = path.partition(":")
    if not os.path.exists(name) or os.path.isdir(name):
        raise ValueError(f"--config: got {name}, expected a file as configs/digits.py")
    try:
        found = _module(name).get_config(*[argument] if colon else [])
    except (Exception, SystemExit) as error:  # it is a program
        raise ValueError(f"--config: {_failure(error, name)}") from error
    if not isinstance(found, ConfigDict):
        raise ValueError(
            f"--config: got {type(found).__name__} from get_config() of {name}, "
            "expected a ConfigDict as that of config.default()"
        )
    return ConfigDict(found) if isinstance(found, FrozenConfigDict) else found


def _module(path: str) -> ModuleType:
    loader = SourceFileLoader("config", path)
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError("got no get_config() in it, expected one that makes a config")
    return module


def _failure(error: BaseException, path: str) -> str:
    """The place in the file where it failed, and why; of our own errors the text."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    where = f"{path}, line {lines[-1]}" if lines else path
    text = " ".join(str(error).split())
    kind = "" if type(error) is ValueError and text else type(error).__name__
    return ": ".join(filter(None, [where, kind, text]))


def default() -> ConfigDict:
    """All keys; names end in their unit; `optim.lr` is the peak at `train.batch`."""

    def unset(kind):  # one reference for each key: shared ones would change together
        return config_dict.placeholder(kind)

    c = ConfigDict()
    c.seed = 0
    c.dtype = "float32"  # of the computation: float32, bfloat16, float64
    c.deterministic = False  # on a GPU: sums in a fixed order, at some cost in time
    c.init_from = unset(str)  # to start from: a run's DIR, FILE of weights, zoo:NAME
    c.data = dict(
        name="digits",
        data_dir=unset(str),
        size=unset(int),  # pixels
        classes=unset(int),
        channels=unset(int),
        timesteps=unset(int),  # frames of an example; None for static images
        pairs=unset(int),  # (key, value) tokens of recall
        validation=0,  # training examples held out
        slice_by=unset(str),  # events to frames: count, or time
        fit=unset(str),  # frames to another size: pad, resize, crop
        corrupt=unset(str),  # what cannot be read stops the program: error, or is skip
        area=unset(float),  # of a picture that a random crop has at least, on the host
        resident_gib=unset(float),  # GiB a set on the devices takes at most; else 1
        workers=unset(int),  # processes that decode what is streamed; None for threads
        changed=False,  # a run goes on, or is scored, though its data are not the same
    )
    c.model = dict(
        name="columnar",
        variant="2-64",
        timesteps=4,
        heads=unset(int),
        pool=unset(str),
        shortcut="full",
        stem=unset(str),  # cifar, imagenet; tokens; sps, tokenizer
        residual=unset(str),  # membrane, or spikes
        readout=unset(str),
        mlp_ratio=4,
        neuron_over_batch=False,  # of qkformer: as its public code, by mistake
        drop_path=0.0,  # chance that the last block is skipped; less in front of it
        remat=False,
    )
    c.model.attention = dict(
        kind=unset(str),
        order="auto",
        q=unset(str),
        k=unset(str),
        v=unset(str),
        scale=unset(float),
        v_th=unset(float),
        k_gain=1.0,
        freeze=unset(str),  # letters of "qkv": these weights stay as initialised
        normalise=unset(str),  # sqrt, pow2 or shiftmax, instead of a scale
        projection=True,
        bias=unset(bool),  # of the maps to q, k and v
        alpha=unset(float),  # of xnor: what two silent channels count
        chunk=unset(int),  # of statten: steps whose tokens are joined
        levels=unset(int),  # of integer: the most spikes of a step
        patch=unset(int),  # of dssa: pixels of a key token's side
        dilate=unset(bool),  # of sdsa: max-pool over the image, for event cameras
    )
    c.model.neuron = dict(
        rule="paper",
        decay_input=unset(bool),
        tau=2.0,
        v_th=1.0,
        v_reset=0.0,
        soft_reset=False,
        detach_reset=True,
        learn_tau=False,
        surrogate=unset(str),
    )
    c.augment = dict(
        flip=False,
        shift=0.0,  # pixels
        rotate=0.0,  # degrees
        zoom=0.0,
        crop=0,  # pixels of a border, out of which the old size is cut
        jitter=0.0,  # of brightness, contrast and saturation
        randaugment=unset(str),  # "rand-m9-n1-mstd0.4-inc1", as timm writes it
        ops="timm",  # of it: timm's fifteen operations, or spikformer's five
        resample="bicubic",  # of it: bilinear, bicubic
        erase=0.0,  # chance that a rectangle becomes the mean colour
        roll=0,  # pixels: out at one side and in at the other
        cutout=0,  # pixels: the side of a square that becomes 0
        drop=0.0,  # chance that a value becomes 0, as if its events were lost
        mixup=0.0,  # alpha
        cutmix=0.0,  # alpha; with both, one or the other for each batch
        off_epoch=unset(int),  # mixup and cutmix stop after so many epochs; None: never
    )
    c.optim = dict(
        name="adamw",  # adamw, lamb, sgd
        lr=1e-3,
        schedule="cosine",  # after the warm-up: cosine or linear to min_lr, constant
        warmup_lr=1e-6,
        min_lr=1e-5,
        warmup_epochs=0.0,
        weight_decay=0.06,
        momentum=0.9,  # of sgd; the first beta of adamw and lamb
        b2=0.999,
        clip=unset(float),  # global norm of the gradient
        layer_decay=1.0,  # each layer below the head has its lr times this
        freeze=unset(str),  # "stem/.*,block_0/.*": parameters that stay as they are
    )
    c.train = dict(
        batch=64,  # examples of one step of the optimizer
        accumulate=1,  # micro-batches they come in; BN sees one micro-batch at a time
        epochs=1.0,
        steps=unset(int),  # wins over epochs
        stop_after=unset(int),  # end early, at this step, with the schedule unchanged
        loss="cross_entropy",  # of the mean over time; "tet" of every step
        tet_mse=0.05,  # share of the squared distance to 1 in "tet"
        label_smoothing=0.0,
        dispatch=1,  # steps in one call of the device, which is slow to call
        log_steps=50,
        save_epochs=10.0,
        keep=2,  # checkpoints: the last so many, and the best on a validation split
        ema=unset(float),  # decay of an average of weights and BN statistics
        profile_steps=unset(str),
    )
    c.eval = dict(
        batch=256,
        examples=unset(int),  # the first so many of the split; None for all
        split="test",  # what the end of training is judged on
        epochs=1.0,  # how often the validation split is scored, if there is one
        layers=False,  # log firing rate and near_threshold of every layer as well
        checkpoint="last",  # of --mode=eval: last, best (on validation), or a step
        average=1,  # last so many checkpoints, whose mean is scored
        ema=True,  # score the average of the weights where there is one
        data=unset(str),  # another data set, of as many classes and channels
        timesteps=unset(int),  # another T
        size=unset(int),  # another resolution, in pixels
        shots="1,5,10",  # of --mode=probe: labelled examples a class
        draws=5,  # of --mode=probe: how often they are drawn
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


def types(tree: ConfigDict, prefix: str = "") -> dict[str, type]:
    """{"model.heads": int, ...}: of what a value is, or would be where it is None."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, ConfigDict):
            found |= types(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = tree.get_type(key)
    return found


def filled(config: ConfigDict) -> ConfigDict:
    """A copy in which the model's own choices stand where None left them to it.

    A rule of neurons other than the paper's has choices of its own.
    """
    new = copy.deepcopy(config)
    flat = flatten(config)
    own = OWN.get(flat.get("model.name"), OWN["columnar"])
    if flat.get("model.neuron.rule") != "paper":
        own = own | {k: v for k, v in OWN["columnar"].items() if "neuron" in k}
    left = {k: v for k, v in own.items() if k in flat and flat[k] is None}
    new.update_from_flattened_dict(left)
    return new


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The filled config as nested dicts that JSON holds, None for what is unset."""
    return json.loads(json.dumps(filled(config).to_dict()))


def check(config: ConfigDict) -> None:
    """What no other place would notice early.

    Raises:
      ValueError: a missing key, one whose feature is not built yet, or a value out of
        its range; names the key, what was got and what was expected.
    """
    flat, known = flatten(config), types(default())
    if missing := sorted(set(known) - set(flat)):
        raise ValueError(
            f"config: {_few(missing)} missing; start from config.default()"
        )
    if extra := sorted(set(flat) - set(known)):
        raise ValueError(f"config: got {_few(extra)}, which no one reads")
    _check_types(flat, known)
    for key, only in NOT_BUILT.items():
        if flat[key] != only:
            raise ValueError(f"{key}: {flat[key]!r} is {_LATER}, expected {only!r}")
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}: got {value}, expected a finite number")
    for key in ("train.batch", "eval.batch", "train.log_steps", "train.accumulate"):
        _above(key, flat[key], 0)
    for key in ("train.keep", "train.dispatch", "eval.average", "eval.draws"):
        _above(key, flat[key], 0)
    if flat["train.batch"] % flat["train.accumulate"]:
        raise ValueError(
            f"train.accumulate: got {flat['train.accumulate']}, expected a divisor of "
            f"train.batch = {flat['train.batch']}"
        )
    for key in ("train.steps", "train.stop_after", "eval.examples"):
        if flat[key] is not None:
            _above(key, flat[key], 0)
    for key in ("train.epochs", "train.save_epochs", "eval.epochs", "optim.lr"):
        _above(key, flat[key], 0)
    if flat["optim.clip"] is not None:
        _above("optim.clip", flat["optim.clip"], 0)
    if (epoch := flat["augment.off_epoch"]) is not None and epoch < 1:
        raise ValueError(
            f"augment.off_epoch: got {epoch}, expected at least 1; None never stops "
            "mixing, and mixup=0 and cutmix=0 never start it"
        )
    for key in ("warmup_epochs", "warmup_lr", "min_lr", "weight_decay"):
        if not flat[f"optim.{key}"] >= 0:
            got = flat[f"optim.{key}"]
            raise ValueError(f"optim.{key}: got {got}, expected >= 0")
    if flat["optim.min_lr"] > flat["optim.lr"]:
        got, lr = flat["optim.min_lr"], flat["optim.lr"]
        raise ValueError(f"optim.min_lr: got {got}, expected at most optim.lr = {lr}")
    for key in ("train.label_smoothing", "train.ema", "model.drop_path"):
        if flat[key] is not None and not 0 <= flat[key] < 1:
            raise ValueError(f"{key}: got {flat[key]}, expected 0 <= it < 1")


def _few(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" * (len(keys) > 3)
    return f"{keys[:3]}{more}"


def _check_types(flat: dict[str, Any], known: dict[str, type]) -> None:
    """ValueError for a value of another type, or an integer that no array holds.

    A file need not begin with `default()`, whose keys keep their types.
    """
    unset = flatten(default())
    for key, value in flat.items():
        kind = known[key]
        if value is None and unset[key] is None:
            continue
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{key}: got {value!r}, expected {_A[kind]}")
        if kind is int and key != "seed" and abs(value) > MOST:
            raise ValueError(f"{key}: got {value}, expected at most {MOST}")


def _above(key: str, value: float, low: float) -> None:
    if not value > low:
        raise ValueError(f"{key}: got {value}, expected > {low}")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys in which two nested configs differ so that one cannot go on as the other.

    A key that an older config does not have yet had what is the default now.
    """
    known = flatten(filled(default()))
    old, new = known | flatten(old), known | flatten(new)
    return [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(MAY_DIFFER)
    ]
