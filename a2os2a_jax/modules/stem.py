"""Stems: from images or tokens to the first membrane U_0 [B, T, N, D].

A static input comes as [B, 1, ...] and is computed once up to the first neuron (or to
U_0), where it is broadcast over the T steps.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.linear import conv3x3, linear, max_pool, param_dtype
from a2os2a_jax.modules.norm import BatchNorm


def over_time(x: jax.Array, repeats: int) -> jax.Array:
    """[B, 1, ...] -> [B, repeats, ...]; unchanged for repeats = 1."""
    if repeats == 1:
        return x
    return jnp.broadcast_to(x, (x.shape[0], repeats, *x.shape[2:]))


class SPS(nn.Module):
    """Spiking patch splitting with membrane output, and the relative position code.

        stages 1-3: conv3x3 - BN - SN [- max-pool], widths D/8, D/4, D/2
        stage 4:    conv3x3 - BN [- max-pool], width D: a membrane u
        U_0 = u + BN(conv3x3(SN(u)))

    pool: four characters, "1" where a stage ends with the 3x3 stride 2 max-pool.
    Source: Yao et al. 2023 (Spike-Driven Transformer), arXiv:2307.01694; Guo et al.
      2025, arXiv:2503.00226, eq. 14.
    """

    dim: int
    pool: str
    neuron: Mapping[str, Any]
    dtype: Any
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, repeats: int = 1) -> jax.Array:
        """x [B, T, H, W, C], or [B, 1, H, W, C] standing for `repeats` steps."""

        def norm(name):
            dtype = param_dtype(self.dtype)
            return BatchNorm(param_dtype=dtype, folded=self.folded, name=name)

        def fire(name, x):
            return neuron.make("binary", self.neuron, dtype=self.dtype, name=name)(x)

        for i, share in enumerate((8, 4, 2, 1)):
            x = conv3x3(self.dim // share, dtype=self.dtype, name=f"conv_{i}")(x)
            x = norm(f"bn_{i}")(x, train, repeats if i == 0 else 1)
            if i == 0:
                x = over_time(x, repeats)
            if i < 3:
                x = fire(f"neuron_{i}", x)
            if self.pool[i] == "1":
                x = max_pool(x)
        s = fire("rpe_neuron", x)
        rpe = conv3x3(self.dim, dtype=self.dtype, name="rpe_conv")(s)
        x = x + norm("rpe_bn")(rpe, train)
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
