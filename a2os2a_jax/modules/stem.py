"""Stems: from images or tokens to the first membrane U_0 [B, T, N, D], or to spikes.

A static input comes as [B, 1, ...] and is computed once up to the first neuron (or to
U_0), where it is broadcast over the T steps.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from a2os2a_jax.functional.pooling import max_pool
from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.linear import conv3x3, linear, param_dtype
from a2os2a_jax.modules.norm import BatchNorm

FORMS = ("membrane", "spikes", "tokenizer")


def over_time(x: jax.Array, repeats: int) -> jax.Array:
    """[B, 1, ...] -> [B, repeats, ...]; unchanged for repeats = 1."""
    if repeats == 1:
        return x
    return jnp.broadcast_to(x, (x.shape[0], repeats, *x.shape[2:]))


class SPS(nn.Module):
    """Spiking patch splitting, and the relative position code.

        stages 1-4: conv3x3 - BN - SN [- max-pool], widths D/8, D/4, D/2, D
        form "membrane":  stage 4 without SN gives u; U_0 = u + BN(conv3x3(SN(u)))
             "spikes":    stage 4 gives s; S_0 = s + SN(BN(conv3x3(s))), counts 0 to 2
             "tokenizer": stage 4 gives s; U_0 = BN(conv3x3(s)), and no position code

    pool: four characters, "1" where a stage ends with the 3x3 stride 2 max-pool.
    initial: of the convolutions, a key of `linear.INITS`.
    Source: "spikes", Zhou et al. 2023 (Spikformer), arXiv:2209.15425; "membrane", Yao
      et al. 2023 (Spike-Driven Transformer), arXiv:2307.01694, and Guo et al. 2025,
      arXiv:2503.00226, eq. 14; "tokenizer", Zhou et al. 2023 (Spikingformer),
      arXiv:2304.11954.
    """

    dim: int
    pool: str
    neuron: Mapping[str, Any]
    dtype: Any
    folded: bool = False
    form: str = "membrane"
    initial: str = "normal"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, repeats: int = 1) -> jax.Array:
        """x [B, T, H, W, C], or [B, 1, H, W, C] standing for `repeats` steps."""

        def convolved(name, number, width, x, repeats=1):
            how = dict(dtype=self.dtype, init=self.initial)
            x = conv3x3(width, **how, name=name.format("conv", number))(x)
            how = dict(param_dtype=param_dtype(self.dtype), folded=self.folded)
            name = name.format("bn", number)
            return BatchNorm(**how, name=name)(x, train, repeats)

        def fire(name, x):
            return neuron.make("binary", self.neuron, dtype=self.dtype, name=name)(x)

        for i, share in enumerate((8, 4, 2, 1)):
            first = repeats if i == 0 else 1
            x = convolved("{}_{}", i, self.dim // share, x, first)
            if i == 0:
                x = over_time(x, repeats)
            if i < 3 or self.form != "membrane":
                x = fire(f"neuron_{i}", x)
            if self.pool[i] == "1":
                x = max_pool(x)
        if self.form == "membrane":
            x = x + convolved("rpe_{}", "", self.dim, fire("rpe_neuron", x))
        elif self.form == "spikes":
            x = x + fire("rpe_neuron", convolved("rpe_{}", "", self.dim, x))
        else:
            x = convolved("{}_{}", 4, self.dim, x)
        return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], self.dim)


class Tokens(nn.Module):
    """U_0 = BN(Linear(x)) for inputs that are tokens already; no position code.

    The linear map has no bias, because its BN has one.
    """

    dim: int
    dtype: Any
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, repeats: int = 1) -> jax.Array:
        """x [B, T, N, F], or [B, 1, N, F] standing for `repeats` steps."""
        x = linear(self.dim, bias=False, dtype=self.dtype, name="linear")(x)
        how = dict(param_dtype=param_dtype(self.dtype), folded=self.folded)
        x = BatchNorm(**how, name="bn")(x, train, repeats)
        return over_time(x, repeats)
