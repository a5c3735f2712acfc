"""A trained model as inference needs it: no BN, no scale and no mean left.

    y = gain (W x + b - mean) / sqrt(var + eps) + bias      = W' x + bias'
    SN(x / tau), SN(s x), SN(sum / N)                       = SN(x) with v_th / factor
    head(mean over tokens and time)                         = sum of S W' + bias

A threshold is scaled together with the potential of the reset, and the membrane with
both. A linear map or convolution loses its bias; bias' stays under the name of the BN,
which adds it in float32 at least.
"""

import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from a2os2a_jax.models.base import SpikingModel
from a2os2a_jax.modules import conv, dssa
from a2os2a_jax.modules.head import ORDERS
from a2os2a_jax.modules.norm import BatchNorm

ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)  # tracers as well


def fold(
    model: SpikingModel,
    variables: Mapping[str, Any],
    *,
    head: str | None = None,
    tokens: int | None = None,
    per_step: bool = False,
) -> tuple[SpikingModel, dict[str, Any]]:
    """The model for inference, and its variables, {"params": ...} alone.

    Args:
      model: as `models.build` makes it.
      variables: its params and batch_stats; or their shapes (jax.ShapeDtypeStruct).
        Concrete numbers are folded in float64 and then have their dtype again.
      head: order of the head: "spikes" are weighted and then summed, "counts" of spikes
        are weighted, or binary digits of the counts, "bits". None is "spikes"; or
        "counts", the only one, where the head reads membranes and no spikes.
      tokens: N, needed with the stem "tokens" where the head reads a mean over tokens.
      per_step: False divides the head by N T, for whole sequences; single steps (the
        call with per_step, and `stream`) are then multiplied by T, which is a shift for
        a power of two alone. True divides it by N, for single steps without a product.
    Returns:
      (folded model, folded variables). The model takes what the other took, with
      train=False, and `timesteps` frames, or any number with per_step; of a model
      folded per step only the latter.
    Raises:
      ValueError: no model or no variables, an unknown order, a model that is folded
        already, no number of tokens or a wrong one, leaves that are missing,
        superfluous, no arrays, not finite or of another shape or dtype, a BN with
        nothing in front of it; names them.
    """
    if not isinstance(model, SpikingModel):
        raise ValueError(
            f"fold: got a {type(model).__name__} as model, expected one that "
            "models.build makes, and then its variables"
        )
    if not isinstance(variables, Mapping):
        raise ValueError(
            f"fold: got a {type(variables).__name__} as variables, expected a mapping "
            "of params and batch_stats"
        )
    if model.folded is not None:
        raise ValueError(
            f"fold: got a model folded already ({model.folded!r}), expected a trained "
            "one"
        )
    orders = head_orders(model)
    head = orders[0] if head is None else head
    if head not in orders:
        raise ValueError(f"fold: head is {head!r}, expected one of {orders}")
    count = _tokens(model, tokens)
    _check(model, variables)
    steps = 1 if per_step else model.timesteps
    means = steps * (count if _averages(model) else 1)

    def of_arrays(variables):
        return _fold(
            model, variables["params"], variables.get("batch_stats", {}), means
        )

    leaves = jax.tree.leaves(dict(variables))
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    run = (lambda v: jax.eval_shape(of_arrays, v)) if abstract else of_arrays
    held = count if model.side is None else None  # else the image's size tells it
    changes = dict(folded=head, folded_steps=steps, tokens=held, **_neurons(model))
    return model.clone(**changes), {"params": run(dict(variables))}


def head_orders(model: SpikingModel) -> tuple[str, ...]:
    """The orders that the head of a folded model can have; the first is the usual one.

    Membranes are no spikes that one could weight one by one.
    """
    return ("counts",) if model.readout == "potential" else ORDERS


def _tokens(model: SpikingModel, tokens: int | None) -> int | None:
    """N, as far as it is known."""
    if tokens is not None:
        try:
            number = 0 if isinstance(tokens, bool) else operator.index(tokens)
        except TypeError:
            number = 0
        if number < 1:
            raise ValueError(f"fold: tokens is {tokens!r}, expected an integer >= 1")
        tokens = number
    if model.side is not None:
        own = model.side**2
        if tokens not in (None, own):
            raise ValueError(f"fold: got {tokens} tokens, expected the model's {own}")
        return own
    if tokens is None and _averages(model):
        raise ValueError(
            "fold: got no number of tokens, expected tokens=N with the stem 'tokens' "
            f"and the readout {model.readout!r}, whose 1/N goes into the head"
        )
    return tokens


def _averages(model: SpikingModel) -> bool:
    """Whether the head takes the mean over all tokens."""
    return model.readout in ("mean", "potential")


def _check(model: SpikingModel, variables: Mapping[str, Any]) -> None:
    """All leaves that the model has, and no others, each a finite array of its kind."""
    frame = (1 if axis is None else axis for axis in model.frame)
    images = jax.ShapeDtypeStruct((1, *frame), jnp.float32)
    want = jax.eval_shape(model.init, jax.random.key(0), images)
    want, have = _named(want), _named(dict(variables))
    missing, extra = sorted(set(want) - set(have)), sorted(set(have) - set(want))
    if missing or extra:
        raise ValueError(f"fold: missing {missing}, superfluous {extra}")
    for name, leaf in have.items():
        shape, dtype = want[name].shape, want[name].dtype
        if not isinstance(leaf, ARRAYS):
            raise ValueError(
                f"fold: {name} is a {type(leaf).__name__}, expected an array {shape}"
            )
        if leaf.shape != shape:
            raise ValueError(f"fold: {name} is {leaf.shape}, expected {shape}")
        if leaf.dtype != dtype:
            raise ValueError(f"fold: {name} is {leaf.dtype}, expected {dtype}")
        if isinstance(leaf, jax.ShapeDtypeStruct | jax.core.Tracer):
            continue
        if bad := np.size(leaf) - np.count_nonzero(np.isfinite(leaf)):
            raise ValueError(
                f"fold: {name} has {bad} entries that are NaN or infinite, expected "
                "finite numbers"
            )


def _named(variables: Mapping[str, Any]) -> dict[str, Any]:
    """{"params/head/kernel": leaf}."""
    flat = traverse_util.flatten_dict(variables)
    return {"/".join(map(str, path)): leaf for path, leaf in flat.items()}


def _neurons(model: SpikingModel) -> dict[str, Any]:
    """The options of the neurons, without the division by tau and for no gradient."""
    neuron = dict(model.neuron, detach_reset=True)  # resets by selects, not products
    names = [n for n in ("attention", "token_attention") if hasattr(model, n)]
    attentions = {name: dict(getattr(model, name)) for name in names}
    # A tau that was learnt is a parameter, and the division is left to the neuron.
    if neuron["decay_input"] and not neuron["learn_tau"]:
        tau = neuron["tau"]
        scaled = {key: tau * neuron[key] for key in ("v_th", "v_reset")}
        neuron |= scaled | dict(decay_input=False)
        for options in attentions.values():
            if options.get("v_th") is not None:
                options["v_th"] = tau * options["v_th"]
    return dict(neuron=neuron, **attentions)


def _fold(model, params, statistics, means: int) -> dict[str, Any]:
    """The folded parameters; `means`: how many spikes the head takes the mean of."""
    flat = traverse_util.flatten_dict(params)
    stats = traverse_util.flatten_dict(statistics)
    given = flat
    flat, stats = _merged(flat, stats)
    out = dict(flat)
    for path in [path[:-1] for path in flat if path[-1] == "scale"]:
        before = partner(path, flat)
        kernel, scale = flat[*before, "kernel"], flat[*path, "scale"]
        factor = _wide(scale) / (_wide(stats[*path, "var"]) + BatchNorm.eps) ** 0.5
        offset = -_wide(stats[*path, "mean"])
        if (*before, "bias") in flat:
            offset = offset + _wide(flat[*before, "bias"])
            del out[*before, "bias"]
        channels = (1,) * (kernel.ndim - 1) + factor.shape
        kernel = _wide(kernel) * factor.reshape(channels)
        bias = _wide(flat[*path, "bias"]) + offset * factor
        rates = [(*path[:-1], name) for name in ("x_rate", "a_rate")]
        if path[-1] == "y_bn" and rates[0] in stats:
            keys = (model.side_of(path) // kernel.shape[0]) ** 2
            how = (_wide(stats[rate]) for rate in rates)
            kernel, bias = dssa.fold_scales(kernel, bias, *how, keys=keys)
        like = given[*path, "bias"]
        out[*before, "kernel"], out[*path, "bias"] = _as(kernel, like), _as(bias, like)
        del out[*path, "scale"]
    head = flat["head", "kernel"]
    out["head", "kernel"] = _as(_wide(head) / means, head)
    return traverse_util.unflatten_dict(out)


def _merged(flat, stats):
    """Each X_rep, a `RepConv`, as one convolution X_conv with a bias."""
    marks = [path for path in flat if path[-2:] == ("in_linear", "kernel")]
    for path in (path[:-2] for path in marks):
        inside = [
            {
                key[len(path) :]: _wide(x)
                for key, x in tree.items()
                if key[: len(path)] == path
            }
            for tree in (flat, stats)
        ]
        flat, stats = (
            {key: x for key, x in tree.items() if key[: len(path)] != path}
            for tree in (flat, stats)
        )
        kernel, bias = conv.merge(*map(traverse_util.unflatten_dict, inside))
        place = (*path[:-1], path[-1].removesuffix("_rep") + "_conv")
        flat |= {(*place, "kernel"): kernel, (*place, "bias"): bias}
    return flat, stats


def partner(norm: tuple[str, ...], params: Mapping[tuple[str, ...], Any]):
    """The layer in front of a BN, by name.

    X_bn follows X_linear or X_conv, bn_i linear_i or conv_i, and bn linear or conv.

    Args:
      norm: path of the BN. params: {path of a leaf: leaf}.
    Raises:
      ValueError: there is none, or its width is another one.
    """
    *outer, name = norm
    stem, _, number = name.partition("bn")
    names = [f"{stem}{kind}{number}" for kind in ("linear", "conv")]
    for path in ((*outer, candidate) for candidate in names):
        kernel = params.get((*path, "kernel"))
        if kernel is None:
            continue
        width = params[*norm, "scale"].shape
        if kernel.shape[-1:] != width:
            raise ValueError(
                f"fold: {'/'.join(norm)} is {width} wide, expected "
                f"{kernel.shape[-1:]} as {'/'.join(path)}"
            )
        return path
    raise ValueError(
        f"fold: {'/'.join(norm)} has nothing in front of it, expected "
        f"{' or '.join(names)} beside it"
    )


def _wide(x):
    """float64 where it is a number already, else (traced) as it is."""
    return x if isinstance(x, jax.core.Tracer) else np.asarray(x, np.float64)


def _as(value, like):
    return jnp.asarray(value, like.dtype)
