"""Firing rates and distances to the threshold, layer by layer, from what flax sowed.

A tree is a collection as `model.apply(..., mutable=["spikes"])` returns it:
{module: {…: {"out": (array [B, T, ...],)}}}. A layer's name is its module path joined
by "/". Rates are fractions of the neurons and timesteps looked at, in [0, 1].

`measure_*` are pure and run under jit (names are static); the others call them and
bring the numbers to the host.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rates(NamedTuple):
    """Fractions [] or, per timestep, [T]: rate = plus + minus."""

    rate: jax.Array
    plus: jax.Array
    minus: jax.Array


def layers(tree: Mapping[str, Any]) -> dict[str, jax.Array]:
    """{"stem/neuron_0": array [B, T, ...]}, in the order of the tree.

    The name under which the array was sown is left out when it is "out". A module that
    ran several times gives one entry per call: "neuron#0", "neuron#1".

    Raises:
      ValueError: an empty tree, or an array without batch and time axes.
    """
    found = dict(_walk(tree, ()))
    if not found:
        raise ValueError(
            "rates: got an empty collection, expected sown arrays; is the collection "
            "in `mutable`?"
        )
    for name, array in found.items():
        if jnp.ndim(array) < 2:
            raise ValueError(
                f"rates: {name} has shape {jnp.shape(array)}, expected [B, T, ...]"
            )
    return found


def _walk(tree: Any, path: tuple[str, ...]):
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _walk(value, (*path, str(key)))
        return
    name = "/".join(path[:-1] if path[-1:] == ("out",) and len(path) > 1 else path)
    calls = tree if isinstance(tree, (tuple, list)) else (tree,)
    for i, array in enumerate(calls):
        yield (name if len(calls) == 1 else f"{name}#{i}"), array


def _share(
    condition: jax.Array, per_step: bool, mask: jax.Array | None = None
) -> jax.Array:
    """Share of True over everything, or [T] over all but axis 1.

    mask [B]: examples with 0 count nowhere; None counts all.
    """
    axes = tuple(i for i in range(2 if per_step else 1, condition.ndim))
    count = jnp.count_nonzero(condition, axis=axes)  # [B], or [B, T]
    size = condition[0, 0].size * (1 if per_step else condition.shape[1])
    if mask is None:
        return count.sum(0) / (len(count) * size)
    kept = mask > 0
    count = jnp.where(kept[:, None] if per_step else kept, count, 0)
    return count.sum(0) / (kept.sum() * size)


def counts(condition: jax.Array) -> tuple[jax.Array, int]:
    """([B] int32: True entries of each example, entries of one example).

    Sums of them are exact, in whatever order examples and batches come.
    """
    axes = tuple(range(1, condition.ndim))
    return jnp.count_nonzero(condition, axis=axes), condition[0].size


def measure_rates(
    spikes: Mapping[str, Any],
    per_step: bool = False,
    mask: jax.Array | None = None,
) -> dict:
    """{layer: Rates} of arrays [], or [T] with `per_step` (static under jit).

    mask [B]: examples with 0 are padding, and left out.
    """

    def one(s: jax.Array) -> Rates:
        share = functools.partial(_share, per_step=per_step, mask=mask)
        return Rates(share(s != 0), share(s > 0), share(s < 0))

    return {name: one(jnp.asarray(s)) for name, s in layers(spikes).items()}


def measure_near_threshold(
    potentials: Mapping[str, Any],
    width: float = 1.0,
    mask: jax.Array | None = None,
) -> dict:
    """{layer: array []}: the share of distances with |.| < width.

    Args:
      potentials: leaves [B, T, ...]: membrane - threshold, before the reset, as the
        neurons of `modules` sow it, in the unit that threshold and membrane share.
      width: in the same unit.
      mask: [B], examples with 0 are padding, and left out.
    """
    return {
        name: _share(jnp.abs(u) < width, False, mask)
        for name, u in layers(potentials).items()
    }


def firing_rates(spikes: Mapping[str, Any]) -> dict[str, float]:
    """{layer: share of s != 0}; a negative or multi-level spike counts once."""
    rates = jax.device_get(measure_rates(spikes))
    return {name: float(r.rate) for name, r in rates.items()}


def firing_rates_per_step(spikes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{layer: [T] share of s != 0 at each timestep}."""
    rates = jax.device_get(measure_rates(spikes, per_step=True))
    return {name: r.rate for name, r in rates.items()}


def ternary_rates(spikes: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """{layer: (share of s > 0, share of s < 0)}."""
    rates = jax.device_get(measure_rates(spikes))
    return {name: (float(r.plus), float(r.minus)) for name, r in rates.items()}


def near_threshold(
    potentials: Mapping[str, Any], width: float = 1.0
) -> dict[str, float]:
    """{layer: share of membranes within `width` of the threshold}.

    Where it is small, few surrogate gradients flow. See `measure_near_threshold`.
    """
    shares = jax.device_get(measure_near_threshold(potentials, width))
    return {name: float(share) for name, share in shares.items()}
