"""Which models exist, their published sizes as data, and `build`."""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from a2os2a_jax.models.columnar import READOUTS, Columnar
from a2os2a_jax.modules import attention as attentions
from a2os2a_jax.modules import neuron as neurons
from a2os2a_jax.modules.block import SHORTCUTS

# Published columnar sizes: variant -> (classes, image size, pool, parameters as counted
# here, in millions as published). Sources: Guo et al. 2025, arXiv:2503.00226, and for
# the skeleton Yao et al. 2023, arXiv:2307.01694. Any other depth-dim builds as well.
COLUMNAR = {
    "8-384": (1000, 224, "1111", 16_816_024, 16.81),
    "8-512": (1000, 224, "1111", 29_689_384, 29.68),
    "10-512": (1000, 224, "1111", 36_005_416, 36.01),
    "8-768": (1000, 224, "1111", 66_338_632, 66.34),
    "2-512": (100, 32, "0011", 10_279_588, 10.28),
}
# Those of the Spike-Driven Transformer, Yao et al. 2023, arXiv:2307.01694: the same
# shapes of parameters, for both attentions have the same weights.
SPIKE_DRIVEN = dict(COLUMNAR)
MODELS = {"columnar": COLUMNAR, "spike_driven": SPIKE_DRIVEN}
# What a family has where `build` is not told otherwise; the neuron is that of its
# public code (tau 2 and threshold 1 in both; the sigmoid is that of alpha 4).
DEFAULTS = {
    "columnar": dict(attention="a2os2a", readout="mean", neuron=dict(neurons.DEFAULTS)),
    "spike_driven": dict(
        attention="sdsa",
        readout="membrane",
        neuron=neurons.DEFAULTS | dict(decay_input=True, surrogate="sigmoid"),
    ),
}
LATER = ("spikformer", "spikingformer", "qkformer", "spikingresformer")
STEMS = ("sps", "tokens")
DTYPES = ("float32", "bfloat16", "float64")


def build(
    name: str,
    variant: str,
    *,
    num_classes: int,
    image_size: int | None,
    in_channels: int = 3,
    timesteps: int = 4,
    heads: int | None = None,
    pool: str | None = None,
    attention: str | Mapping[str, Any] | None = None,
    neuron: Mapping[str, Any] | None = None,
    shortcut: str = "full",
    dtype: Any = jnp.float32,
    stem: str = "sps",
    readout: str | None = None,
    mlp_ratio: int = 4,
    remat: bool = False,
    drop_path: float = 0.0,
) -> nn.Module:
    """A model by name and size; nothing is computed yet.

    Args:
      name: "columnar", or "spike_driven", which is the same skeleton with defaults of
        its own (DEFAULTS): attention "sdsa", readout "membrane", decayed input.
      variant: "depth-dim", for example "2-512"; any numbers.
      num_classes: width of the head.
      image_size: height = width of the images, in pixels; None with the stem `tokens`.
      in_channels: channels of the images; features per token with the stem `tokens`.
      timesteps: T, how often a static image is shown.
      heads: attention heads; 8 by default.
      pool: four characters, "1" where a stem stage halves the image; "1111" by default
        from 64 pixels on, else "0011".
      attention: a kind ("a2os2a", "vssa", "sdsa"; controls "frozen_qk", "frozen_v",
        "uniform", "v_only", "none") or a mapping with kind and options: order, k, v,
        scale, normalise, v_th, k_gain, freeze, projection; see
        `modules.attention.UNSET`. None, and a mapping without a kind, is the family's.
      neuron: rule ("paper", "guo"), tau, v_th, decay_input, surrogate, v_reset,
        soft_reset, detach_reset, learn_tau; what is None or not there is the family's,
        or the other rule's.
      shortcut: membrane carried on by a block: "full" U_l, or "attention" U'_l.
      dtype: of the computation: float32, bfloat16 (parameters, statistics and membranes
        stay float32) or float64 (everything is).
      stem: "sps" for images, "tokens" for [B, N, F].
      readout: the head reads the "mean" over tokens of the last spikes, those of the
        last token, "query", or spikes of the mean "membrane"; None is the family's.
      mlp_ratio: hidden width of the MLP over dim.
      remat: recompute blocks in the backward pass from their spikes, to save memory.
      drop_path: chance in training that the last block adds nothing to an example,
        growing linearly up to it; `apply` then takes rngs={"drop_path": key}.
    Returns:
      A flax module: `init(key, images, train=False)`, `apply(variables, images,
      train=False, per_step=False)`, `stream(variables)`.
    Raises:
      ValueError: names what was got and what was expected.
    """
    if name not in MODELS:
        later = " (not built yet)" if name in LATER else ""
        raise ValueError(f"model.name: got {name!r}{later}, expected {_or(MODELS)}")
    depth, dim = _depth_dim(variant)
    own = DEFAULTS[name]
    attention = {"kind": attention} if isinstance(attention, str) else attention
    attention = _or_own(attention, {"kind": own["attention"]})
    if (neuron or {}).get("rule") in (None, own["neuron"]["rule"]):
        neuron = _or_own(neuron, own["neuron"])
    neuron = neurons.resolve(neuron)
    readout = own["readout"] if readout is None else readout
    if neuron["rule"] == "guo":
        if attention.get("v_th") is not None:
            raise ValueError(
                f"attention.v_th: got {attention['v_th']}, expected none with the guo "
                "rule, which fixes the threshold to 1/2"
            )
    heads = 8 if heads is None else heads
    _at_least("model.timesteps", timesteps, 1)
    _at_least("model.heads", heads, 1)
    _at_least("num_classes", num_classes, 1)
    _at_least("in_channels", in_channels, 1)
    _at_least("mlp_ratio", mlp_ratio, 1)
    if dim % heads:
        raise ValueError(f"model.heads: got {heads}, expected a divisor of dim {dim}")
    _one_of("model.stem", stem, STEMS)
    _one_of("model.readout", readout, READOUTS)
    _one_of("model.shortcut", shortcut, SHORTCUTS)
    if not 0 <= drop_path < 1:
        raise ValueError(f"model.drop_path: got {drop_path}, expected 0 <= it < 1")
    dtype = jnp.dtype(dtype)
    _one_of("dtype", dtype.name, DTYPES)
    if dtype == jnp.float64 and not jax.config.jax_enable_x64:
        raise ValueError("dtype: got float64, expected jax_enable_x64 to be set for it")
    if stem == "sps":
        pool = _pool(pool, image_size, dim)
    elif image_size is not None or pool is not None:
        raise ValueError(
            f"model.stem: got image_size {image_size} and pool {pool}, expected None "
            "for both with 'tokens'"
        )
    return Columnar(
        depth=depth,
        dim=dim,
        num_classes=num_classes,
        image_size=image_size,
        in_channels=in_channels,
        timesteps=timesteps,
        heads=heads,
        pool=pool or "",
        stem=stem,
        readout=readout,
        attention=attentions.resolve(attention),
        neuron=neuron,
        shortcut=shortcut,
        mlp_ratio=mlp_ratio,
        remat=remat,
        dtype=dtype,
        drop_path=drop_path,
    )


def _or_own(options: Mapping[str, Any] | None, own: Mapping[str, Any]):
    """The options, and what the family has for those that are None or not there."""
    options = dict(options or {})
    return options | {k: v for k, v in own.items() if options.get(k) is None}


def _depth_dim(variant: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)-(\d+)", str(variant))
    if not match or "0" in match.groups():
        raise ValueError(
            f"model.variant: got {variant!r}, expected depth-dim as in 2-512"
        )
    return int(match[1]), int(match[2])


def _pool(pool: str | None, image_size: int | None, dim: int) -> str:
    if dim % 8:
        raise ValueError(
            f"model.variant: dim is {dim}, expected a multiple of 8 (stem)"
        )
    if image_size is None:
        raise ValueError("image_size: got None, expected pixels with the stem 'sps'")
    _at_least("image_size", image_size, 1)
    pool = ("1111" if image_size >= 64 else "0011") if pool is None else str(pool)
    if not re.fullmatch("[01]{4}", pool):
        raise ValueError(
            f"model.pool: got {pool!r}, expected four characters 0 or 1, as in '0011'"
        )
    stride = 2 ** pool.count("1")
    if image_size % stride:
        raise ValueError(
            f"image_size: got {image_size}, expected a multiple of {stride}, the "
            f"stride of the stem with pool '{pool}'"
        )
    return pool


def _or(names) -> str:
    return " or ".join(repr(name) for name in names)


def _one_of(what: str, value, names) -> None:
    if value not in names:
        raise ValueError(f"{what}: got {value!r}, expected {_or(names)}")


def _at_least(what: str, value, low: int) -> None:
    if not isinstance(value, int) or value < low:
        raise ValueError(f"{what}: got {value!r}, expected an integer >= {low}")
