"""State dicts of PyTorch models as our variables, and back.

    model, variables = torch_weights.load("spikformer.pth.tar", timesteps=4, heads=12)
    torch_weights.save("spikformer.safetensors", model, variables)

`interop.torch_families` knows the names, `interop.torch_files` the files. Every tensor
is used, or known to be one that the public forward never reads, or the load fails.
"""

import inspect
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from a2os2a_jax.interop import torch_entries, torch_files
from a2os2a_jax.interop.torch_families import (
    FAMILIES,
    LEAVES,
    NDIM,
    Row,
    blocks_named,
    place,
    rows_of,
    table,
    to_ours,
    to_torch,
)
from a2os2a_jax.models import build, families
from a2os2a_jax.models.columnar import Columnar
from a2os2a_jax.models.qkformer import QKFormer
from a2os2a_jax.models.registry import LARGE
from a2os2a_jax.models.spikingresformer import SpikingResformer
from a2os2a_jax.modules import attention as attentions
from a2os2a_jax.modules.linear import linear

LOG = logging.getLogger("a2os2a_jax")
IMAGE_SIZES = {"cifar": 32, "imagenet": 224}
MANY = 1000  # classes of ImageNet
UNTOLD = ("heads", "timesteps", "image_size", "pool", "neuron", "attention")
_EVENT_MODEL = dict(  # Spikformer's for CIFAR10-DVS, the only one with `pos_embed`
    heads=16, image_size=128, attention=dict(kind="ssa", scale=0.25)
)
NAMED = 4  # so many tensors are named in an error, the others counted
# Attentions that the public code of a family has; `save` names no others by it.
WRITTEN = {
    "spike_driven": ("sdsa",),
    "spikformer": ("ssa", "vssa"),
    "spikingformer": ("ssa", "vssa"),
    "qkformer": ("ssa", "vssa"),
}


def module_path(name: str, family: str) -> str:
    """Our path of a module, "blocks.0.attn.q_lif" -> "block_0/attention/q_neuron".

    Raises:
      ValueError: the family's table has no such module.
    """
    rows = table(family, blocks_named([name])).get(name, ())
    if not rows or not rows[0].ours:
        raise ValueError(f"torch_weights: {family} has no module named {name!r}")
    return rows[0].ours


def _place(key: str, family: str, blocks: int) -> tuple[Row, tuple[str, ...]]:
    """The tensor's row, and its place: () where nobody reads it."""
    if key in FAMILIES[family].ignored:
        return Row(key, "", "layer_norm"), ()
    rows = rows_of(key, family, blocks)
    where = place(key, rows[0]) if rows else None
    if where is not None:
        return rows[0], where
    if rows and rows[0].ours:
        raise ValueError(
            f"torch_weights: {key!r} is no weight, bias or running statistic of "
            f"{family}"
        )
    module = key.rpartition(".")[0]
    raise ValueError(f"torch_weights: {family} has no module named {module!r}: {key!r}")


def _convert(
    state_dict: Mapping[str, Any], family: str, dtype
) -> tuple[dict[tuple[str, ...], jax.Array], dict[tuple[str, ...], str]]:
    """(arrays, keys of the state dict), both by place."""
    blocks = blocks_named(state_dict)
    flat, keys = {}, {}
    for key, value in state_dict.items():
        row, where = _place(key, family, blocks)
        if not where:
            continue
        if row.kind in NDIM and key.endswith(".weight") and np.ndim(value) < 2:
            raise ValueError(
                f"torch_weights: {key} has shape {np.shape(value)}, expected "
                f"{NDIM[row.kind]} axes"
            )
        if where in flat:
            raise ValueError(
                f"torch_weights: got {keys[where]} and {key}, expected one of them for "
                f"{'/'.join(where)}"
            )
        try:
            array = to_ours(np.asarray(value), row)
        except ValueError as error:
            raise ValueError(f"torch_weights: {key} has {error}") from error
        flat[where], keys[where] = jnp.asarray(array, dtype), key
    return flat, keys


def to_variables(
    state_dict: Mapping[str, np.ndarray], family: str = "columnar", dtype=jnp.float32
) -> dict[str, Any]:
    """{"params": ..., "batch_stats": ...} of a state dict.

    Any tree with the state dict's keys converts: gradients, or statistics alone.
    Raises:
      ValueError: a key the family's table does not know, or axes that such a tensor
        does not have.
    """
    return traverse_util.unflatten_dict(_convert(state_dict, family, dtype)[0])


def from_variables(
    variables: Mapping[str, Any],
    like: Mapping[str, np.ndarray],
    family: str = "columnar",
) -> dict[str, np.ndarray]:
    """The inverse: our arrays with the keys and layout of the state dict `like`.

    Raises:
      ValueError: a key of `like` has no counterpart in `variables`.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    blocks, out = blocks_named(like), {}
    for key, value in like.items():
        row, where = _place(key, family, blocks)
        if not where:
            continue
        if where not in flat:
            raise ValueError(
                f"torch_weights: {'/'.join(where)} is not in the variables"
            )
        array = to_torch(np.asarray(flat[where]), row)
        if array.shape != np.shape(value):  # 1x1 kernels, which differ in their ones
            array = array.reshape(np.shape(value))
        out[key] = array
    return out


def load(
    path: str | os.PathLike,
    family: str | None = None,
    *,
    surrogate: str | None = None,
    dtype: Any = None,
    num_classes: int | None = None,
    key: jax.Array | None = None,
    ema: bool = False,
    entry: str | None = None,
    **build_options: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """A model and its variables from a file of weights.

    Family, depth, width, classes, channels, MLP ratio and biases are read from the
    tensors; of SpikingResformer its stages, heads, patches and groups as well. The stem
    is where names or kernels tell it, else by image_size (from 64 pixels on that of
    ImageNet), else by the classes (1000 are ImageNet's).

    Args:
      path: ends in one of `torch_files.SUFFIXES`, keyed by the state dict's own names.
        Keys it lies under and what wrappers put in front of names are known, see
        `torch_entries`.
      family: the model's family; recognised by its keys when None.
      surrogate: replaces the neuron's surrogate, as in `functional.surrogate.by_name`.
      dtype: of the computation, as in `models.build`.
      num_classes: when the file has another number, or no head, a head is initialised
        anew; a warning of the logger "a2os2a_jax" says so.
      key: of that initialisation; that of seed 0 when None.
      ema: take the moving average, of a torch file that holds both.
      entry: a path of dots to the state dict, "generator.ema": keys in the file, then
        what names begin with; names that do not are left out.
      build_options: those of `models.build` that no tensor tells: heads, timesteps,
        pool, image_size (32 or 224 pixels by the stem), stem, neuron; and any
        other, which then has to agree with the tensors.
    Returns:
      (model, variables).
    Raises:
      ValueError: an unknown file type or key, missing or superfluous weights, shapes
        that differ from the model's, values that are not finite, a damaged file; the
        message names the tensor, as the file and as we call it.
      FileNotFoundError: there is no such file.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(
            f"torch_weights: family {family!r}, expected {tuple(FAMILIES)}"
        )
    known = set(inspect.signature(build).parameters)
    if unknown := sorted(set(build_options) - known):
        raise ValueError(
            f"torch_weights: got the options {', '.join(unknown)}, expected some of "
            f"models.build: {', '.join(sorted(known - {'name'}))}"
        )
    if num_classes is not None and not (
        isinstance(num_classes, int) and num_classes >= 1
    ):
        raise ValueError(
            f"torch_weights: got num_classes {num_classes!r}, expected an integer >= 1"
        )
    dtype = jnp.dtype(dtype or jnp.float32)
    if dtype == jnp.float64 and not jax.config.jax_enable_x64:
        raise ValueError(
            "torch_weights: got dtype float64, expected jax_enable_x64 to be set for it"
        )
    state_dict = torch_files.read(path, ema, entry)
    family = family or recognise(state_dict)
    about = torch_files.metadata(path)
    about = about if about.get("family") == family else {}  # then `save` wrote it
    wide = jnp.promote_types(dtype, jnp.float32)
    flat, keys = _convert(state_dict, family, wide)
    headless = not any(where[:2] == _HEAD for where in flat)
    if headless:
        flat[*_HEAD, "kernel"] = _stand_in(path, family, flat, num_classes)
    options = _options(family, state_dict, flat, build_options, surrogate, about)
    held = options["num_classes"]
    variant = options.pop("variant")
    try:
        model = build(family, variant, dtype=dtype, **options)
    except ValueError as error:
        untold = "heads" not in options and "model.heads" in str(error)
        hint = "; no tensor tells the heads: give heads=" if untold else ""
        raise ValueError(f"torch_weights {path}: {error}{hint}") from error
    if headless:
        head = _new_head(model, flat[*_HEAD, "kernel"], key)
        flat |= {(*_HEAD, leaf): array for leaf, array in head.items()}
    _check(model, family, flat, keys)
    variables = traverse_util.unflatten_dict(flat)
    if headless or num_classes not in (None, held):
        LOG.warning(
            "torch_weights %s: head of %s classes in the file, %d asked for: "
            "initialised anew",
            path,
            "no" if headless else held,
            num_classes,
        )
    if num_classes not in (None, held):
        model = model.clone(num_classes=num_classes)
        kernel = variables["params"]["head"]["kernel"]
        variables["params"]["head"] = _new_head(model, kernel, key)
    return model, variables


def save(
    path: str | os.PathLike, model: nn.Module, variables: Mapping[str, Any]
) -> None:
    """A .safetensors file that the public code of the model's family loads strictly.

    Names and axes are those of its code for small images, or for large ones where the
    stem is that of ImageNet. Counters (num_batches_tracked) are 0; what its forward
    never reads is there too, as ones (LayerNorm weights) and zeros. What no tensor
    tells is in the metadata, where `load` finds it: heads, steps, sizes, and options of
    neurons and attention that are not the family's; that their code has to be told of
    the last, a warning of the logger "a2os2a_jax" says.

    Args:
      path: of a file that is not there yet.
      model: as `models.build` gives it, not folded, with the family's own attention.
      variables: params and batch_stats.
    Raises:
      ValueError: variables that are not the model's, a value that is not finite, or a
        model that no public code has.
      FileExistsError, OSError: as `torch_files.write`.
    """
    family, stem = _family_of(model)
    flat = traverse_util.flatten_dict(jax.device_get(dict(variables)))
    flat = {where: x for where, x in flat.items() if where[0] in _COLLECTIONS}
    _check(model, family, flat, {})
    out, used = {}, set()
    for row in FAMILIES[family].rows(_blocks_in(flat)):
        if row.stem not in (None, stem):
            continue
        for leaf, array in _exported(row, flat, used, model):
            if not np.isfinite(array).all():
                raise ValueError(
                    f"torch_weights: {row.theirs}.{leaf} ({row.ours}) has values that "
                    "are NaN or infinite, expected finite ones"
                )
            out[f"{row.theirs}.{leaf}"] = array
    if left := sorted("/".join(where) for where in set(flat) - used):
        raise ValueError(
            f"torch_weights: got {_some(left)}, for which the code of {family} has no "
            "name"
        )
    about = {"format": "pt", "family": family, "stem": stem}
    sizes = UNTOLD[:4]
    about |= {k: json.dumps(getattr(model, k)) for k in sizes if hasattr(model, k)}
    asked = _asked(model, families.FAMILIES[family])
    if asked:
        LOG.warning(
            "torch_weights %s: %s; the code of %s has to be told so",
            path,
            "; ".join(f"{key} {value}" for key, value in asked.items()),
            family,
        )
    about |= {key: json.dumps(value) for key, value in asked.items()}
    torch_files.write(path, out, about)


_COLLECTIONS = ("params", "batch_stats")
_HEAD = ("params", "head")


def _exported(row: Row, flat, used: set, model) -> Iterable[tuple[str, np.ndarray]]:
    """(leaf, array) of one module, none where the model has no such."""
    if row.kind == "layer_norm":
        yield "weight", np.ones(model.dim, np.float32)
        yield "bias", np.zeros(model.dim, np.float32)
    elif row.kind == "heads":
        yield "weight", np.zeros((model.heads, model.heads, 1), np.float32)
    elif row.kind == "silent":
        if model.neuron["learn_tau"]:
            yield "w", np.zeros((), np.float32)
    else:
        for leaf, _, _ in LEAVES[row.kind]:
            where = place(f"{row.theirs}.{leaf}", row)
            if where in flat:
                used.add(where)
                yield leaf, to_torch(np.asarray(flat[where]), row)
        if row.kind == "norm" and ("params", *row.ours.split("/"), "scale") in flat:
            yield "num_batches_tracked", np.zeros((), np.int64)


def _family_of(model: nn.Module) -> tuple[str, str]:
    """(family, stem) whose public code has this model."""
    if getattr(model, "folded", None) is not None:
        raise ValueError(
            "torch_weights: got a folded model, expected one with its norms"
        )
    if isinstance(model, SpikingResformer):
        return "spikingresformer", model.stem
    if isinstance(model, QKFormer):
        family, stem = "qkformer", model.stem
    elif isinstance(model, Columnar):
        if model.stem == "tokens":
            raise ValueError(
                "torch_weights: got the stem 'tokens', expected one for images: no "
                "public code has it"
            )
        stem = "imagenet" if model.pool == "1111" else "cifar"
        if model.residual == "spikes":
            family = "spikformer"
        elif model.stem == "tokenizer":
            family = "spikingformer"
        elif model.readout == "membrane" and model.attention["kind"] == "sdsa":
            family = "spike_driven"
        else:
            family = "columnar"
    else:
        raise ValueError(
            f"torch_weights: got {type(model).__name__}, expected a model as "
            "models.build makes it"
        )
    _check_structure(model, family, stem)
    kind = model.attention["kind"]
    if kind not in WRITTEN.get(family, (kind,)):
        raise ValueError(
            f"torch_weights: got attention {kind!r}, expected "
            f"{' or '.join(map(repr, WRITTEN[family]))}, as the code of {family} has"
        )
    return family, stem


def _check_structure(model: nn.Module, family: str, stem: str) -> None:
    """ValueError for a forward pass that the family's public code does not have."""
    own = families.FAMILIES[family]
    if family == "columnar":
        return  # our own reference has all of them
    want: dict[str, Any] = dict(readout=own.readout, residual=own.residual)
    want |= dict(shortcut="full")
    if family in ("spikformer", "spikingformer"):
        want["pool"] = "1111" if stem == "imagenet" else "0011"
    have = {key: getattr(model, key, value) for key, value in want.items()}
    if family == "spikformer":
        want["bias"] = stem in own.bias
        have["bias"] = bool(model.attention.get("bias"))
    for key, value in want.items():
        if have[key] != value:
            raise ValueError(
                f"torch_weights: got {key} {have[key]!r}, expected {value!r}, as the "
                f"code of {family} has it with the stem {stem!r}"
            )


def _asked(model: nn.Module, own: families.Family) -> dict[str, Any]:
    """Options of neurons and attention that are not the family's."""
    asked: dict[str, Any] = {}
    if neuron := {k: v for k, v in model.neuron.items() if v != own.neuron[k]}:
        asked["neuron"] = neuron
    if hasattr(model, "attention"):
        kind = model.attention["kind"]
        usual = attentions.resolve(kind)
        other = {k: v for k, v in model.attention.items() if v != usual[k]}
        other.pop("bias", None)  # tensors tell it
        if other or kind != own.attention:
            asked["attention"] = {"kind": kind} | other
    return asked


# --- what the tensors tell ------------------------------------------------------------


def recognise(state_dict: Mapping[str, np.ndarray]) -> str:
    """The family whose names these are; where two have them, by the axes."""
    blocks, known, fits = blocks_named(state_dict), {}, {}
    for family in FAMILIES:
        known[family] = fits[family] = 0
        for key, value in state_dict.items():
            try:
                row, _ = _place(key, family, blocks)
            except ValueError:
                continue
            known[family] += 1
            leaf = key.rpartition(".")[2]
            if row.kind in NDIM and leaf == "weight":
                rows = rows_of(key, family, blocks)
                fits[family] += np.ndim(value) in {NDIM[r.kind] for r in rows}
    most = max(known.values())
    if not most:
        some = ", ".join(list(state_dict)[:3])
        raise ValueError(
            f"torch_weights: no family of {tuple(FAMILIES)} has keys as {some}; what "
            f"is left out in front of them is {', '.join(torch_entries.PREFIXES)}, or "
            f"what all have; {torch_entries.OTHER}"
        )
    best = [family for family in FAMILIES if known[family] == most]
    closest = max(fits[family] for family in best)
    best = [family for family in best if fits[family] == closest]
    if len(best) > 1:
        raise ValueError(
            f"torch_weights: these keys are of {' and '.join(best)}, expected family="
        )
    return best[0]


def _options(family, state_dict, flat, given, surrogate, about) -> dict[str, Any]:
    """Arguments for `build`: what the tensors tell, and over it what was asked for.

    about: what `save` wrote beside them, {} of other files.
    """
    given = {name: value for name, value in given.items() if value is not None}
    untold = {name: about[name] for name in UNTOLD if about.get(name)}
    if isinstance(untold.get("heads"), list):
        untold["heads"] = tuple(untold["heads"])
    if family == "spikformer" and "pos_embed" in state_dict:
        untold = _EVENT_MODEL | untold
    if {"stem", "image_size"} & given.keys():  # then the sizes are asked for anew
        untold = {k: v for k, v in untold.items() if k not in ("pool", "image_size")}
    given = untold | given
    shapes = {"/".join(where): array.shape for where, array in flat.items()}
    if family == "spikingresformer":
        options = _staged_sizes(family, shapes)
    else:
        options = _columnar_sizes(family, state_dict, shapes)
    if surrogate is not None or any(key.endswith(".w") for key in state_dict):
        neuron = dict(given.get("neuron") or {})
        neuron |= {} if surrogate is None else {"surrogate": surrogate}
        if any(where[-1] == "w" for where in flat):
            neuron = {"learn_tau": True} | neuron
        given["neuron"] = neuron
    told = _told_stem(family, state_dict, shapes, given.get("stem"))
    pixels = given.get("image_size")
    large = options["num_classes"] == MANY if pixels is None else pixels >= LARGE
    usual = "imagenet" if large else "cifar"
    options["stem"] = told or usual
    options["image_size"] = IMAGE_SIZES.get(told, IMAGE_SIZES[usual])
    last = "stage_3/block_0" if family == "qkformer" else "block_0"
    biases = [f"params/{last}/attention/{x}_linear/bias" in shapes for x in "qkv"]
    if all(biases) or options["stem"] in families.FAMILIES[family].bias:
        asked = given.get("attention", {})
        asked = {"kind": asked} if isinstance(asked, str) else asked
        asked = {k: value for k, value in asked.items() if value is not None}
        given["attention"] = {"bias": all(biases)} | asked
    return options | given


def _columnar_sizes(family: str, state_dict, shapes) -> dict[str, Any]:
    """Of the families that are called depth-dim."""
    dim, classes = _shape(family, shapes, "params/head/kernel")
    staged = family == "qkformer"
    stem = "stage_1/embed" if staged else "stem"
    last = "stage_3/block_0" if staged else "block_0"
    options = dict(
        variant=f"{_blocks(shapes)}-{dim}",
        num_classes=classes,
        in_channels=_shape(family, shapes, f"params/{stem}/conv_0/kernel")[2],
    )
    hidden = shapes.get(f"params/{last}/mlp/fc1_linear/kernel", (dim, 4 * dim))[1]
    options["mlp_ratio"] = _ratio(family, hidden, dim)
    for key, array in state_dict.items():
        if key.endswith("talking_heads.weight"):
            options["heads"] = array.shape[0]
    return options


def _staged_sizes(family: str, shapes) -> dict[str, Any]:
    """Of SpikingResformer."""
    _, classes = _shape(family, shapes, "params/head/kernel")
    in_channels = _shape(family, shapes, "params/stem/conv/kernel")[2]
    pairs, planes, heads, patches = [], [], [], []
    for k in range(1, 1 + _most(r"params/stage_(\d+)/", shapes)):
        stage = f"stage_{k}/block_0"
        pairs.append(1 + _most(rf"params/stage_{k}/block_(\d+)/", shapes))
        where = f"params/{stage}/attention/y_conv/kernel"
        kernel = _shape(family, shapes, where)
        patches.append(kernel[0])
        planes.append(kernel[2])
        rates = f"batch_stats/{stage}/attention/x_rate"
        heads.append(_shape(family, shapes, rates)[0])
    if not pairs:
        _shape(family, shapes, "params/stage_1/block_0/attention/y_conv/kernel")
    mlp = "params/stage_1/block_0/mlp"
    up = _shape(family, shapes, f"{mlp}/up_linear/kernel")
    return dict(
        variant="-".join(".".join(map(str, sizes)) for sizes in (pairs, planes)),
        num_classes=classes,
        in_channels=in_channels,
        mlp_ratio=_ratio(family, up[1], up[0]),
        heads=tuple(heads),
        patch_sizes=tuple(patches),
        group_size=_shape(family, shapes, f"{mlp}/group_conv/kernel")[2],
    )


def _told_stem(family, state_dict, shapes, asked: str | None) -> str | None:
    """The stem that the names are of, else the one asked for."""
    told: dict[str, str] = {}
    blocks = blocks_named(state_dict)
    for key in state_dict:
        stems = {row.stem for row in rows_of(key, family, blocks)}
        if len(stems) == 1 and None not in stems:
            told.setdefault(*stems, key)
    if family == "spikingresformer":
        size = shapes["params/stem/conv/kernel"][0]
        told = {
            "imagenet" if size == 7 else "cifar": f"prologue.0.weight of {size}x{size}"
        }
    if len(told) > 1:
        keys = " and ".join(f"{key} ({stem})" for stem, key in told.items())
        raise ValueError(
            f"torch_weights: got {keys}, expected {family} names of one stem"
        )
    if told and asked not in (None, *told):
        ((stem, key),) = told.items()
        raise ValueError(
            f"torch_weights: got stem {asked!r}, expected {stem!r}, of which {key} is"
        )
    return next(iter(told), asked)


def _shape(family: str, shapes, where: str) -> tuple[int, ...]:
    """Of a tensor that sizes are read from."""
    if where not in shapes:
        raise ValueError(f"torch_weights: missing {_both(family, where)}")
    return shapes[where]


def _ratio(family: str, hidden: int, dim: int) -> int:
    if hidden % dim:
        raise ValueError(
            f"torch_weights: got {hidden} hidden channels in the MLP of {family}, "
            f"expected a multiple of {dim}"
        )
    return hidden // dim


def _blocks(shapes) -> int:
    """How many blocks there are, of all stages together."""
    names = (re.match(r"params/((?:stage_\d+/)?block_)(\d+)/", name) for name in shapes)
    last: dict[str, int] = {}
    for match in names:
        if match:
            last[match[1]] = max(last.get(match[1], 0), 1 + int(match[2]))
    return sum(last.values())


def _blocks_in(flat) -> int:
    names = (name for where in flat for name in where)
    numbers = (re.fullmatch(r"(?:block|stage)_(\d+)", name) for name in names)
    return 1 + max((int(match[1]) for match in numbers if match), default=0)


def _most(pattern: str, names) -> int:
    matches = (re.match(pattern, name) for name in names)
    return max((int(match[1]) for match in matches if match), default=0)


def _stand_in(path, family: str, flat, num_classes: int | None) -> jax.Array:
    """A kernel of the right shape for a head that the file lacks."""
    if num_classes is None:
        raise ValueError(
            f"torch_weights {path}: missing the head, "
            f"{_both(family, 'params/head/kernel')}; num_classes= makes one anew"
        )
    shapes = {"/".join(where): array.shape for where, array in flat.items()}
    last, name = "block_0", "fc2"
    if family == "qkformer":
        last = "stage_3/block_0"
    elif family == "spikingresformer":
        stage = _most(r"params/stage_(\d+)/", shapes)
        last, name = f"stage_{stage}/block_0", "down"
    dim = _shape(family, shapes, f"params/{last}/mlp/{name}_linear/kernel")[-1]
    return jnp.zeros((dim, num_classes))


def _new_head(model, kernel, key) -> dict[str, jax.Array]:
    head = linear(
        model.num_classes,
        bias=model.head_bias,
        dtype=kernel.dtype,
        init=model.head_init,
        inputs=len(kernel),
        name=None,
    )
    key = jax.random.key(0) if key is None else key
    return head.init(key, jnp.zeros((1, len(kernel)), kernel.dtype))["params"]


# --- all of it, and no more -----------------------------------------------------------


def _check(model, family: str, flat, keys: Mapping[tuple[str, ...], str]) -> None:
    """All weights the model has, and no others, each of its shape."""

    def make():
        shape = (1, model.image_size, model.image_size, model.in_channels)
        return model.init(jax.random.key(0), jnp.zeros(shape))

    want = traverse_util.flatten_dict(jax.eval_shape(make), sep="/")
    want = dict(sorted(want.items(), key=lambda item: item[0].startswith("batch")))
    have = {"/".join(where): array for where, array in flat.items()}
    names = {"/".join(where): key for where, key in keys.items()}

    def named(where: str) -> str:
        return f"{names[where]} ({where})" if where in names else _both(family, where)

    missing = [named(where) for where in want if where not in have]
    extra = [named(where) for where in have if where not in want]
    if missing or extra:
        raise ValueError(
            f"torch_weights: missing {_some(missing)}, superfluous {_some(extra)} for "
            f"{family}"
        )
    for where, array in have.items():
        if array.shape != want[where].shape:
            raise ValueError(
                f"torch_weights: {named(where)} is {array.shape}, expected "
                f"{want[where].shape}"
            )


def _both(family: str, where: str) -> str:
    """A tensor as their code calls it, and as we do: "head.weight (params/...)"."""
    blocks = _blocks_in([tuple(where.split("/"))])
    for row in FAMILIES[family].rows(blocks):
        for leaf, _, _ in LEAVES[row.kind] if row.ours else ():
            key = f"{row.theirs}.{leaf}"
            if "/".join(place(key, row) or ()) == where:
                return f"{key} ({where})"
    return where


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED]) or 'none'}{more}"
