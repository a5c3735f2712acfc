"""`build`: a model by name and size, with everything that can be wrong found early."""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from a2os2a_jax.functional import checks
from a2os2a_jax.models import qkformer, spikingresformer
from a2os2a_jax.models.columnar import READOUTS, STEMS, Columnar
from a2os2a_jax.models.families import FAMILIES, Family
from a2os2a_jax.modules import attention as attentions
from a2os2a_jax.modules import neuron as neurons
from a2os2a_jax.modules.block import RESIDUALS, SHORTCUTS

SCALES = ("cifar", "imagenet")  # how much a stem halves the image
DTYPES = ("float32", "bfloat16", "float64")
LARGE = 64  # pixels from which on an image gets the stem of ImageNet, unless told


def build(
    name: str,
    variant: str,
    *,
    num_classes: int,
    image_size: int | None,
    in_channels: int = 3,
    timesteps: int = 4,
    heads: int | tuple[int, ...] | None = None,
    pool: str | None = None,
    attention: str | Mapping[str, Any] | None = None,
    neuron: Mapping[str, Any] | None = None,
    shortcut: str = "full",
    dtype: Any = jnp.float32,
    stem: str | None = None,
    readout: str | None = None,
    residual: str | None = None,
    mlp_ratio: int = 4,
    remat: bool = False,
    drop_path: float = 0.0,
    neuron_over_batch: bool = False,
    patch_sizes: tuple[int, ...] | None = None,
    group_size: int | None = None,
) -> nn.Module:
    """A model by name and size; nothing is computed yet.

    Args:
      name: a family, a key of `families.FAMILIES`: "columnar", "spike_driven",
        "spikformer", "spikingformer" (one skeleton, of one resolution), "qkformer",
        "spikingresformer" (stages). What is None below, or not there, is the family's.
      variant: "depth-dim", for example "2-512"; any numbers. spikingresformer has "ti",
        "s", "m", "l", "cifar", or pairs and planes of its stages,
        "1.2.3-64.192.384".
      num_classes: width of the head.
      image_size: height = width of the images, in pixels; None with the stem `tokens`.
      in_channels: channels of the images; features per token with the stem `tokens`.
      timesteps: T, how often a static image is shown.
      heads: attention heads; those of a published size, else 8, in spikingresformer one
        for 64 channels. Of stages, in qkformer and spikingresformer, also a tuple.
      pool: four characters, "1" where a stem stage halves the image; "1111" by default
        with the stem of ImageNet, else "0011". Of one resolution only.
      attention: a kind (a key of `modules.attention.KINDS`) or a mapping with kind and
        options, see `modules.attention.UNSET`. In qkformer that of its last stage.
      neuron: rule ("paper", "guo"), tau, v_th, decay_input, surrogate, v_reset,
        soft_reset, detach_reset, learn_tau; what is None or not there is the family's,
        or the other rule's.
      shortcut: membrane carried on by a block: "full" U_l, or "attention" U'_l.
      dtype: of the computation: float32, bfloat16 (parameters, statistics and membranes
        stay float32) or float64 (everything is).
      stem: "cifar" or "imagenet", the family's own for small and for large images; None
        is the second from 64 pixels on. Or "tokens" for [B, N, F], or by its class,
        "sps" or "tokenizer".
      readout: the head reads the "mean" over tokens of the last spikes, those of the
        last token, "query", spikes of the mean "membrane", or its "potential".
      residual: "membrane", or "spikes" (spike counts); see `modules.block.Block`.
      mlp_ratio: hidden width of the MLP over dim.
      remat: recompute blocks in the backward pass from their spikes, to save memory.
      drop_path: chance in training that the last block adds nothing to an example,
        growing linearly up to it; `apply` then takes rngs={"drop_path": key}.
      neuron_over_batch: of qkformer, let the neuron behind the attention of the last
        stage run on from one example of the batch to the next, as its public code does
        by mistake. To show parity; not to train with.
      patch_sizes, group_size: of spikingresformer, pixels of a key's side in each stage
        (4, 2, 1) and channels of a group of its convolution (64).
    Returns:
      A flax module: `init(key, images, train=False)`, `apply(variables, images,
      train=False, per_step=False)`, `stream(variables)`.
    Raises:
      ValueError: names what was got and what was expected.
    """
    num_classes, image_size = checks.plain((num_classes, image_size))
    in_channels, timesteps = checks.plain((in_channels, timesteps))
    heads, mlp_ratio, drop_path = checks.plain((heads, mlp_ratio, drop_path))
    patch_sizes, group_size = checks.plain((patch_sizes, group_size))
    if name not in FAMILIES:
        raise ValueError(f"model.name: got {name!r}, expected {_or(FAMILIES)}")
    own = FAMILIES[name]
    attention = {"kind": attention} if isinstance(attention, str) else attention
    attention = _or_own(attention, {"kind": own.attention})
    if (neuron or {}).get("rule") in (None, own.neuron["rule"]):
        neuron = _or_own(neuron, own.neuron)
    neuron = neurons.resolve(neuron)
    readout = own.readout if readout is None else readout
    residual = own.residual if residual is None else residual
    if neuron["rule"] == "guo" and attention.get("v_th") is not None:
        raise ValueError(
            f"attention.v_th: got {attention['v_th']}, expected none with the guo "
            "rule, which fixes the threshold to 1/2"
        )
    pool = pool or None
    _at_least("model.timesteps", timesteps, 1)
    _at_least("num_classes", num_classes, 1)
    _at_least("in_channels", in_channels, 1)
    _at_least("mlp_ratio", mlp_ratio, 1)
    _one_of("model.stem", stem, (None, *STEMS, *SCALES))
    _one_of("model.readout", readout, READOUTS)
    _one_of("model.residual", residual, RESIDUALS)
    _one_of("model.shortcut", shortcut, SHORTCUTS)
    if not 0 <= drop_path < 1:
        raise ValueError(f"model.drop_path: got {drop_path}, expected 0 <= it < 1")
    try:
        dtype = jnp.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"dtype: got {dtype!r}, expected {_or(DTYPES)}") from error
    _one_of("dtype", dtype.name, DTYPES)
    if dtype == jnp.float64 and not jax.config.jax_enable_x64:
        raise ValueError("dtype: got float64, expected jax_enable_x64 to be set for it")
    if neuron_over_batch and name != "qkformer":
        raise ValueError(
            f"neuron_over_batch: got True with {name}, expected qkformer, whose public "
            "code has that mistake"
        )
    if name != "spikingresformer":
        _unused(name, patch_sizes=patch_sizes, group_size=group_size)
    how = dict(
        num_classes=num_classes,
        image_size=image_size,
        in_channels=in_channels,
        timesteps=timesteps,
        neuron=neuron,
        dtype=dtype,
        mlp_ratio=mlp_ratio,
        remat=remat,
        drop_path=drop_path,
        readout=readout,
    )
    if name in ("qkformer", "spikingresformer"):
        _unused(name, pool=pool, shortcut=None if shortcut == "full" else shortcut)
        _one_of(f"model.readout of {name}", readout, (own.readout,))
        _one_of(f"model.residual of {name}", residual, (own.residual,))
        _one_of(f"model.stem of {name}", stem, (None, *SCALES))
        _at_least("image_size", image_size, 1)
    if name == "qkformer":
        return _qkformer(variant, heads, stem, attention, neuron_over_batch, how)
    if name == "spikingresformer":
        sizes = dict(patch_sizes=patch_sizes, group_size=group_size)
        return _spikingresformer(variant, heads, stem, attention, sizes, how)
    how |= dict(residual=residual, shortcut=shortcut)
    return _columnar(name, own, variant, heads, stem, pool, attention, how)


def _columnar(name, own: Family, variant, heads, stem, pool, attention, how):
    depth, dim = _depth_dim(variant)
    image_size, residual = how["image_size"], how["residual"]
    if stem == "tokens":
        if image_size is not None or pool is not None:
            raise ValueError(
                f"model.stem: got image_size {image_size} and pool {pool}, expected "
                "None for both with 'tokens'"
            )
        scale = "cifar"
    else:
        scale = _scale(stem, image_size)
        stem = own.stem if stem in (None, *SCALES) else stem
        pool = _pool(pool, image_size, dim, scale)
    if how["readout"] in ("membrane", "potential") and residual == "spikes":
        raise ValueError(
            f"model.readout: got {how['readout']!r}, expected 'mean' or 'query' with "
            "the residual 'spikes', which has no membrane"
        )
    if residual == "spikes" and how["shortcut"] != "full":
        raise ValueError(
            f"model.shortcut: got {how['shortcut']!r}, expected 'full' with the "
            "residual 'spikes', which has no membrane to carry on"
        )
    if scale in own.bias and attention.get("bias") is None:
        if "bias" in attentions.options_of(attention):
            attention = dict(attention, bias=True)
    attention = attentions.resolve(attention)
    *inits, head_init = own.inits[scale]
    model = Columnar(
        depth=depth,
        dim=dim,
        heads=_heads(name, variant, heads, dim),
        pool=pool or "",
        stem=stem,
        attention=attention,
        inits=tuple(inits),
        head_init=head_init,
        **how,
    )
    _fits(attention, model.side, how["timesteps"])
    return model


def _qkformer(variant, heads, stem, attention, over_batch, how):
    depth, dim = _depth_dim(variant)
    scale = _scale(stem, how["image_size"])
    early = (1, 1) if scale == "cifar" else (1, 2)
    if depth <= sum(early):
        raise ValueError(
            f"model.variant: got {variant!r}, expected a depth of {sum(early) + 1} or "
            f"more: {early} blocks are of the first two stages with the stem {scale!r}"
        )
    if dim % 8:
        raise ValueError(f"model.variant: dim is {dim}, expected a multiple of 8")
    stride = 16 if scale == "imagenet" else 4
    if how["image_size"] % stride:
        raise ValueError(
            f"image_size: got {how['image_size']}, expected a multiple of {stride} "
            f"with the stem {scale!r}"
        )
    attention = attentions.resolve(attention)
    if heads is None and scale == "imagenet" and dim % 64 == 0:
        heads = dim // 64
    heads = _of_stages(heads, len(qkformer.SHARES))
    if len(heads) != len(qkformer.SHARES):
        raise ValueError(
            f"model.heads: got {heads}, expected one number, or one for each of "
            f"{len(qkformer.SHARES)} stages"
        )
    widths = [dim // share for share in qkformer.SHARES]
    model = qkformer.QKFormer(
        depths=(*early, depth - sum(early)),
        dim=dim,
        heads=tuple(
            _heads("qkformer", variant, own, width)
            for own, width in zip(heads, widths, strict=True)
        ),
        stem=scale,
        token_attention=attentions.resolve("qk_token"),
        attention=attention,
        over_batch=over_batch,
        **how,
    )
    _fits(attention, model.side, how["timesteps"])
    return model


def _spikingresformer(variant, heads, stem, attention, sizes, how):
    if attentions.resolve(attention) != attentions.resolve("dssa"):
        raise ValueError(
            f"model.attention: got {dict(attention)} with spikingresformer, expected "
            "'dssa', whose patches are patch_sizes"
        )
    known = spikingresformer.VARIANTS.get(str(variant))
    if known:
        pairs, planes = known.pairs, known.planes
        stem = known.stem if stem is None and known.stem == "cifar" else stem
    else:
        match = re.fullmatch(r"(\d+(?:\.\d+)*)-(\d+(?:\.\d+)*)", str(variant))
        if not match:
            raise ValueError(
                f"model.variant: got {variant!r}, expected one of "
                f"{_or(spikingresformer.VARIANTS)}, or pairs and planes of the stages "
                "as in 1.2.3-64.192.384"
            )
        pairs, planes = (tuple(map(int, part.split("."))) for part in match.groups())
    if heads is None:
        heads = tuple(max(1, width // spikingresformer.HEAD_DIM) for width in planes)
    patch_sizes = sizes["patch_sizes"]
    if patch_sizes is None:
        patch_sizes = spikingresformer.PATCH_SIZES[-len(pairs) :]
    group_size = sizes["group_size"]
    full = dict(
        pairs=pairs,
        planes=planes,
        heads=_of_stages(heads, len(pairs)),
        patch_sizes=_of_stages(patch_sizes, len(pairs)),
        group_size=spikingresformer.GROUP_SIZE if group_size is None else group_size,
        stem=_scale(stem, how["image_size"]),
    )
    same = dict(image_size=how["image_size"], mlp_ratio=how["mlp_ratio"])
    spikingresformer.check(**full, **same)
    return spikingresformer.SpikingResformer(**full, **how)


def _of_stages(value: Any, stages: int) -> tuple[Any, ...]:
    """One for each stage, where one was given for all."""
    several = isinstance(value, tuple | list)
    return tuple(value) if several else (value,) * stages


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


def _heads(name: str, variant: str, heads: int | None, dim: int) -> int:
    """Those asked for, or of the published size, or 8."""
    if heads is None:
        size = FAMILIES[name].sizes.get(variant)
        heads = size.heads if size else 8
    _at_least("model.heads", heads, 1)
    if dim % heads:
        raise ValueError(f"model.heads: got {heads}, expected a divisor of dim {dim}")
    return heads


def _scale(stem: str | None, image_size: int | None) -> str:
    if stem in SCALES:
        return stem
    return "imagenet" if (image_size or 0) >= LARGE else "cifar"


def _pool(pool: str | None, image_size: int | None, dim: int, scale: str) -> str:
    if dim % 8:
        raise ValueError(
            f"model.variant: dim is {dim}, expected a multiple of 8 (stem)"
        )
    if image_size is None:
        raise ValueError("image_size: got None, expected pixels with a stem for images")
    _at_least("image_size", image_size, 1)
    pool = ("1111" if scale == "imagenet" else "0011") if pool is None else str(pool)
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


def _fits(options: Mapping[str, Any], side: int | None, timesteps: int) -> None:
    """ValueError for an attention that this model's tokens or steps do not suit."""
    kind = options["kind"]
    if side is None and (attentions.KINDS[kind].square or options.get("dilate")):
        raise ValueError(
            f"attention.kind: got {kind!r} with the stem 'tokens', expected a stem for "
            "images: it needs a square map of tokens"
        )
    if side is not None and side % options.get("patch", 1):
        raise ValueError(
            f"attention.patch: got {options['patch']}, expected a divisor of {side}, "
            "the side of the map of tokens"
        )
    if timesteps % (options.get("chunk") or 1):
        raise ValueError(
            f"attention.chunk: got {options['chunk']}, expected a divisor of "
            f"model.timesteps {timesteps}"
        )


def _unused(name: str, **options) -> None:
    for key, value in options.items():
        if value is not None:
            raise ValueError(f"model.{key}: got {value!r}, expected None with {name}")


def _or(names) -> str:
    return " or ".join(repr(name) for name in names)


def _one_of(what: str, value, names) -> None:
    if value not in names:
        raise ValueError(f"{what}: got {value!r}, expected {_or(names)}")


def _at_least(what: str, value, low: int) -> None:
    if not isinstance(value, int) or value < low:
        raise ValueError(f"{what}: got {value!r}, expected an integer >= {low}")
