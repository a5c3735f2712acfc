"""Names, planes and slots of spike arrays."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

KINDS = ("binary", "ternary", "integer")


def tag(s: jax.Array, kind: str = "binary") -> jax.Array:
    """s itself, under the name "spikes/<kind>", for `jax.checkpoint` policies.

    Raises:
      ValueError: a kind that is not in KINDS.
    """
    if kind not in KINDS:
        raise ValueError(f"spikes.tag: kind is {kind!r}, expected one of {KINDS}")
    return checkpoint_name(s, f"spikes/{kind}")


def save_spikes(*kinds: str):
    """A `jax.checkpoint` policy: keep tagged spikes (default: all), redo the rest.

    Spikes are what a backward pass reads most and what costs a scan to make again:

        jax.checkpoint(block, policy=spikes.save_spikes())
    """
    names = [f"spikes/{kind}" for kind in kinds or KINDS]
    return jax.checkpoint_policies.save_only_these_names(*names)


def expand(s: jax.Array, levels: int, *, axis: int = 0) -> jax.Array:
    """An integer spike as `levels` binary slots: slot i is [s > i], i = 0..levels-1.

    Args:
      s: [...] with values in {0, ..., levels}.
      levels: number of slots, D.
      axis: where the new axis of length `levels` goes.
    Returns:
      [levels, ...] (at `axis`) in {0, 1}, dtype of s, with sum over `axis` equal to s;
      hence W s = sum of W slot, by linearity.
    Raises:
      ValueError: levels < 1.
    """
    if levels < 1:
        raise ValueError(f"spikes.expand: levels is {levels}, expected an integer >= 1")
    slots = [(s > i).astype(s.dtype) for i in range(levels)]
    return jnp.stack(slots, axis)


def collapse(slots: jax.Array, *, axis: int = 0) -> jax.Array:
    """The inverse of `expand`: the sum over the slots."""
    return slots.sum(axis)


def planes(s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A ternary spike as two binary planes (plus, minus), with s = plus - minus.

    Args:
      s: [...] in {-1, 0, 1}.
    Returns:
      ([s > 0], [s < 0]), each [...] in {0, 1}, dtype of s; never both 1.
    """
    return (s > 0).astype(s.dtype), (s < 0).astype(s.dtype)


def quantise(x: jax.Array, bits: int, step: float | jax.Array) -> jax.Array:
    """x >= 0 as one of 2^bits levels, step * clip(round(x / step), 0, 2^bits - 1).

    Half a step rounds to the even level. Where `step` is a power of two, x / step is
    the same number with another exponent, and the levels are integers up to a shift.
    No gradient passes through the rounding.

    Args:
      x: [...] real.
      bits: number of binary slots that hold a level, see `planes` and `expand`.
      step: [] or broadcast against x; > 0.
    Returns:
      [...], dtype of x.
    Raises:
      ValueError: bits < 1.
    """
    if bits < 1:
        raise ValueError(f"spikes.quantise: bits is {bits}, expected an integer >= 1")
    level = jnp.clip(jnp.round(x / step), 0, 2**bits - 1)
    return (level * step).astype(x.dtype)
