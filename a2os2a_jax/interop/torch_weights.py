"""State dicts of PyTorch models as our variables, and back.

A family is a table of module names. What a leaf is called, and how its axes lie,
follows from its module: Linear [out, in] and Conv2d [out, in, h, w] become kernels [in,
out] and [h, w, in, out], where a convolution of one pixel is a linear map; a norm's
weight is our scale. Every key is used, or named as unused by its family, or the load
fails.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from a2os2a_jax.models import build


class Family(NamedTuple):
    """modules: (module in the state dict, our module), regular expression and
    replacement, which may be a function of the match. Neurons have no weights; their
    names are here so that recorded spikes can be compared too.
    stem: key of the first convolution. unused: keys (regular expression) of weights
    that the public forward never reads.
    """

    modules: tuple[tuple[str, str | Callable[[re.Match], str]], ...]
    stem: str
    unused: str = r"(?!)"


_COLUMNAR = (
    (r"stem\.conv\.(\d)", r"stem/conv_\1"),
    (r"stem\.bn\.(\d)", r"stem/bn_\1"),
    (r"stem\.(rpe_conv|rpe_bn)", r"stem/\1"),
    (r"blocks\.(\d+)\.attn\.([qkv]|proj)_(linear|bn)", r"block_\1/attention/\2_\3"),
    (r"blocks\.(\d+)\.mlp\.(fc[12])_(linear|bn)", r"block_\1/mlp/\2_\3"),
    (r"head", r"head"),
    (r"stem\.lif\.(\d)", r"stem/neuron_\1"),
    (r"stem\.rpe_lif", r"stem/rpe_neuron"),
    (r"stem_lif", r"stem_neuron"),
    (r"blocks\.(\d+)\.attn\.([qkv])_lif", r"block_\1/attention/\2_neuron"),
    (r"blocks\.(\d+)\.attn\.attn_lif", r"block_\1/attention/attention_neuron"),
    (r"blocks\.(\d+)\.attn_out_lif", r"block_\1/mid_neuron"),
    (r"blocks\.(\d+)\.mlp\.fc1_lif", r"block_\1/mlp/fc1_neuron"),
    (r"blocks\.(\d+)\.out_lif", r"block_\1/out_neuron"),
)


def _before(match: re.Match) -> str:
    """The neuron in front of a block is the last one of the block before it."""
    block = int(match[1])
    return f"block_{block - 1}/out_neuron" if block else "stem_neuron"


# Source: BICLab/Spike-Driven-Transformer, commit 3faa822.
_SPIKE_DRIVEN = (
    (r"patch_embed\.proj_(conv|bn)", r"stem/\1_0"),
    (r"patch_embed\.proj_(conv|bn)([123])", r"stem/\1_\2"),
    (r"patch_embed\.(rpe_conv|rpe_bn)", r"stem/\1"),
    (r"block\.(\d+)\.attn\.([qkv]|proj)_conv", r"block_\1/attention/\2_linear"),
    (r"block\.(\d+)\.attn\.([qkv]|proj)_bn", r"block_\1/attention/\2_bn"),
    (r"block\.(\d+)\.mlp\.(fc[12])_conv", r"block_\1/mlp/\2_linear"),
    (r"block\.(\d+)\.mlp\.(fc[12])_bn", r"block_\1/mlp/\2_bn"),
    (r"head", r"head"),
    (r"patch_embed\.proj_lif", r"stem/neuron_0"),
    (r"patch_embed\.proj_lif([12])", r"stem/neuron_\1"),
    (r"patch_embed\.proj_lif3", r"stem/rpe_neuron"),
    (r"block\.(\d+)\.attn\.shortcut_lif", _before),
    (r"block\.(\d+)\.attn\.([qkv])_lif", r"block_\1/attention/\2_neuron"),
    (
        r"block\.(\d+)\.attn\.talking_heads_lif",
        r"block_\1/attention/attention_neuron",
    ),
    (r"block\.(\d+)\.mlp\.fc1_lif", r"block_\1/mid_neuron"),
    (r"block\.(\d+)\.mlp\.fc2_lif", r"block_\1/mlp/fc1_neuron"),
    (r"head_lif", r"head_neuron"),
)
FAMILIES = {
    "columnar": Family(_COLUMNAR, "stem.conv.0.weight"),
    "spike_driven": Family(
        _SPIKE_DRIVEN,
        "patch_embed.proj_conv.weight",
        r"block\.\d+\.attn\.talking_heads\.weight",
    ),
}
_STATISTICS = {"running_mean": "mean", "running_var": "var"}
_COUNTER = "num_batches_tracked"  # nothing here needs it


def module_path(name: str, family: str) -> str:
    """Our path of a module, "blocks.0.attn.q_lif" -> "block_0/attention/q_neuron".

    Raises:
      ValueError: the family's table has no such module.
    """
    for pattern, ours in FAMILIES[family].modules:
        if match := re.fullmatch(pattern, name):
            return ours(match) if callable(ours) else match.expand(ours)
    raise ValueError(f"torch_weights: {family} has no module named {name!r}")


def _place(key: str, ndim: int, family: str) -> tuple[str, ...]:
    """(collection, module, ..., leaf) of a key of the state dict."""
    module, _, leaf = key.rpartition(".")
    path = module_path(module, family).split("/")
    if leaf in _STATISTICS:
        return ("batch_stats", *path, _STATISTICS[leaf])
    if leaf not in ("weight", "bias"):
        raise ValueError(
            f"torch_weights: {key!r} is no weight, bias or running statistic"
        )
    if leaf == "weight":
        leaf = "kernel" if ndim > 1 else "scale"
    return ("params", *path, leaf)


def _unused(key: str, family: str) -> bool:
    pattern = FAMILIES[family].unused
    return key.endswith(_COUNTER) or re.fullmatch(pattern, key) is not None


def _to_ours(array: np.ndarray) -> np.ndarray:
    if array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array


def _to_torch(array: np.ndarray, ndim: int) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim == 2:
        return array.T.reshape(*array.T.shape, *(1,) * (ndim - 2))
    return array


def to_variables(
    state_dict: Mapping[str, np.ndarray], family: str = "columnar", dtype=jnp.float32
) -> dict[str, Any]:
    """{"params": ..., "batch_stats": ...} of a state dict.

    Any tree with the state dict's keys converts: gradients, or statistics alone.
    Raises:
      ValueError: a key the family's table does not know.
    """
    flat = {}
    for key, value in state_dict.items():
        if _unused(key, family):
            continue
        value = np.asarray(value)
        flat[_place(key, value.ndim, family)] = jnp.asarray(_to_ours(value), dtype)
    return traverse_util.unflatten_dict(flat)


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
    out = {}
    for key, value in like.items():
        if _unused(key, family):
            continue
        place = _place(key, np.ndim(value), family)
        if place not in flat:
            raise ValueError(
                f"torch_weights: {'/'.join(place)} is not in the variables"
            )
        out[key] = _to_torch(np.asarray(flat[place]), np.ndim(value))
    return out


def load(
    path: str | Path,
    family: str | None = None,
    *,
    surrogate: str | None = None,
    dtype: Any = None,
    **build_options: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """A model and its variables from a file of weights.

    Args:
      path: .npz, .safetensors, .pth or .pt, keyed by the state dict's own names.
      family: the model's family; recognised by its keys when None.
      surrogate: replaces the neuron's surrogate, as in `functional.surrogate.by_name`.
      dtype: of the computation, as in `models.build`.
      build_options: those of `models.build`: image_size, which no weight tells (nor
        heads, timesteps, pool), and any other. Depth, width, classes and channels are
        read from the tensors.
    Returns:
      (model, variables).
    Raises:
      ValueError: an unknown file type or key, missing or superfluous weights, or shapes
        that differ from the model's; the message names them.
    """
    if "image_size" not in build_options:
        raise ValueError(
            "torch_weights: got no image_size, expected pixels; no tensor tells it"
        )
    state_dict = _read(Path(path))
    family = family or _recognise(state_dict)
    if family not in FAMILIES:
        raise ValueError(
            f"torch_weights: family {family!r}, expected {tuple(FAMILIES)}"
        )
    dtype = jnp.dtype(dtype or jnp.float32)
    if surrogate is not None:
        neuron = dict(build_options.pop("neuron", None) or {})
        build_options["neuron"] = neuron | {"surrogate": surrogate}
    wide = jnp.promote_types(dtype, jnp.float32)
    variables = to_variables(state_dict, family, wide)
    names = variables.get("params", {})
    blocks = (re.fullmatch(r"block_(\d+)", name) for name in names)
    depth = 1 + max((int(match[1]) for match in blocks if match), default=-1)
    stem = FAMILIES[family].stem
    for key in ("head.weight", stem):  # the sizes are read from these
        if key not in state_dict:
            raise ValueError(f"torch_weights: missing {key!r}")
    classes, dim = state_dict["head.weight"].shape
    model = build(
        family,
        f"{depth}-{dim}",
        num_classes=classes,
        in_channels=state_dict[stem].shape[1],
        dtype=dtype,
        **build_options,
    )
    _check(model, variables)
    return model, variables


def _recognise(state_dict) -> str:
    for family in FAMILIES:
        try:
            to_variables({k: np.zeros(()) for k in state_dict}, family)
            return family
        except ValueError:
            continue
    some = ", ".join(list(state_dict)[:3])
    raise ValueError(
        f"torch_weights: no family of {tuple(FAMILIES)} has keys as {some}"
    )


def _check(model, variables) -> None:
    """All weights the model has, and no others, each of its shape."""
    images = jnp.zeros((1, model.image_size, model.image_size, model.in_channels))
    want = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    want = traverse_util.flatten_dict(want, sep="/")
    have = traverse_util.flatten_dict(variables, sep="/")
    missing, extra = sorted(set(want) - set(have)), sorted(set(have) - set(want))
    if missing or extra:
        raise ValueError(f"torch_weights: missing {missing}, superfluous {extra}")
    for name, array in have.items():
        if array.shape != want[name].shape:
            raise ValueError(
                f"torch_weights: {name} is {array.shape}, expected {want[name].shape}"
            )


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    if path.suffix in (".pth", ".pt"):
        import torch

        state_dict = torch.load(path, map_location="cpu", weights_only=True)
        for outer in ("model", "state_dict"):
            state_dict = state_dict.get(outer, state_dict)
        return {k.removeprefix("module."): v.numpy() for k, v in state_dict.items()}
    raise ValueError(
        f"torch_weights: got {path.name}, expected .npz, .safetensors, .pth or .pt"
    )
