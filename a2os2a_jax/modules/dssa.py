"""Dual spike self-attention, whose scales follow firing rates measured in training."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from a2os2a_jax.functional import attention
from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.linear import conv, linear, param_dtype
from a2os2a_jax.modules.norm import BatchNorm

KEEP = 0.999  # share of the old firing rate that a training step keeps


class DSSA(nn.Module):
    """BN(Linear(o)), [B, T, N, D] spikes -> [B, T, N, D] membrane.

        y1, y2 = BN(conv p x p, stride p (S)), halves of every head      [B, T, M, D]
        a = SN(y1^T S / sqrt(f_x d))      every key with every query     {0, 1}
        o = SN(y2 a / sqrt(f_a M))                                       {0, 1}

    with M = (side / p)^2 keys, d = D / heads, and per head f_x and f_a, the running
    firing rates of S and a. These are "x_rate" and "a_rate" in the collection
    "batch_stats". A training call moves them before it uses them, f = 0.999 f + 0.001
    rate, over batch, time, tokens and the head's channels, without a gradient; where
    all are zero, f is the rate itself. A head that has never fired has the scale 1: the
    public code divides by zero there.

    side: the N tokens are a map of side x side pixels, row-major. patch: p, in pixels.
    folded: the norms add a bias only, and the scales are in the convolution and its
    bias (`fold_scales`).
    Source: Shi et al. 2024 (SpikingResformer), arXiv:2403.14302.
    """

    dim: int
    heads: int
    side: int
    neuron: Mapping[str, Any]
    dtype: Any
    patch: int
    folded: bool = False

    @nn.compact
    def __call__(self, s: jax.Array, train: bool) -> jax.Array:
        """Membrane of the spikes s [B, T, side^2, D].

        Args:
          s: [B, T, N, D], in {0, 1}.
          train: normalise with the batch's statistics, and move the running ones and
            the rates (make "batch_stats" mutable).
        Returns:
          [B, T, N, D], at least float32.
        Raises:
          ValueError: N is not side^2, the width of s is not `dim`, `side` is no
            multiple of `patch`, or `dim` none of `heads`.
        """
        check("DSSA", dim=self.dim, heads=self.heads, side=self.side, patch=self.patch)
        if s.ndim != 4 or s.shape[2:] != (self.side**2, self.dim):
            raise ValueError(
                f"DSSA: got spikes {s.shape}, expected [B, T, {self.side**2}, "
                f"{self.dim}], a map of side {self.side}"
            )
        y1, y2 = self._keys(s, train)
        s = self._heads(s)
        fire = functools.partial(self._fire, "attention")
        if self.folded:
            o = attention.dssa(y1, y2, s, fire)
        else:
            x_rate = self._rate("x_rate", s, 3, train)
            first = scale(x_rate, self.dim // self.heads)

            def second(a):
                return scale(self._rate("a_rate", a, 2, train), a.shape[-2])

            o = attention.dssa(y1, y2, s, fire, first, second)
        o = self._fire("out", o.reshape(*o.shape[:3], self.dim))
        o = linear(self.dim, bias=False, dtype=self.dtype, name="proj_linear")(o)
        return self._norm("proj")(o, train)

    def _keys(self, s: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """y1 and y2, [B, T, M, heads, d]."""
        how = dict(kernel=self.patch, stride=self.patch, padding=0, dtype=self.dtype)
        x = s.reshape(*s.shape[:2], self.side, self.side, self.dim)
        y = conv(2 * self.dim, **how, name="y_conv")(x)
        y = self._norm("y")(y, train).astype(self.dtype)
        keys = y.shape[2] * y.shape[3]
        y = y.reshape(*s.shape[:2], keys, self.heads, 2, self.dim // self.heads)
        return y[..., 0, :], y[..., 1, :]

    def _heads(self, s: jax.Array) -> jax.Array:
        return s.reshape(*s.shape[:3], self.heads, self.dim // self.heads)

    def _norm(self, name: str) -> BatchNorm:
        how = dict(param_dtype=param_dtype(self.dtype), folded=self.folded)
        return BatchNorm(**how, name=f"{name}_bn")

    def _fire(self, name: str, x: jax.Array) -> jax.Array:
        name = f"{name}_neuron"
        return neuron.make("binary", self.neuron, dtype=self.dtype, name=name)(x)

    def _rate(self, name: str, s: jax.Array, axis: int, train: bool) -> jax.Array:
        """The running firing rate [heads] to divide by; s has its heads on `axis`."""
        wide = param_dtype(self.dtype)
        held = self.variable("batch_stats", name, jnp.zeros, (self.heads,), wide)
        if not train:
            return held.value
        others = tuple(i for i in range(s.ndim) if i != axis)
        now = jax.lax.stop_gradient(s.mean(others, wide))
        old = jnp.where((held.value == 0).all(), now, held.value)
        rate = KEEP * old + (1 - KEEP) * now
        if not self.is_initializing():
            held.value = rate
        return rate


def scale(rate, size: int):
    """1 / sqrt(rate size), and 1 where the rate is zero; numpy or jax, as `rate` is."""
    xp = jnp if isinstance(rate, jax.Array) else np
    fired = rate > 0
    return xp.where(fired, 1 / xp.sqrt(xp.where(fired, rate, 1.0) * size), 1.0)


def fold_scales(kernel, bias, x_rate, a_rate, *, keys: int):
    """The two scales of a trained `DSSA`, put into its convolution.

    Products are linear in y1 and y2, so every channel of y1 is multiplied with the
    first scale of its head, every one of y2 with the second.

    Args:
      kernel: [p, p, D, 2D] of y_conv, its BN folded in. bias: [2D], of the folded y_bn.
      x_rate, a_rate: [heads], the running firing rates.
      keys: M, the tokens that y has.
    Returns:
      (kernel, bias), numpy where all four are, else jax.
    Raises:
      ValueError: shapes that do not fit each other.
    """
    heads, width = len(x_rate), kernel.shape[-1]
    if a_rate.shape != (heads,) or bias.shape != (width,) or width % (2 * heads):
        raise ValueError(
            f"fold_scales: got kernel {kernel.shape}, bias {bias.shape}, rates "
            f"{x_rate.shape} and {a_rate.shape}, expected [p, p, D, 2D], [2D], [heads] "
            "twice"
        )
    size = width // (2 * heads)
    scales = (scale(x_rate, size), scale(a_rate, keys))
    xp = jnp if any(isinstance(x, jax.Array) for x in scales) else np
    factor = xp.repeat(xp.stack(scales, -1).reshape(2 * heads), size)
    channels = (1,) * (kernel.ndim - 1) + (width,)
    return kernel * factor.reshape(channels), bias * factor


def check(name: str, *, dim: int, heads: int, side: int, patch: int) -> None:
    """ValueError, which begins with `name`, for sizes that do not divide."""
    if heads < 1 or dim % heads:
        raise ValueError(f"{name}: dim is {dim}, expected a multiple of {heads} heads")
    if patch < 1 or side % patch:
        raise ValueError(
            f"{name}: side is {side}, expected a multiple of the patch, {patch}"
        )
