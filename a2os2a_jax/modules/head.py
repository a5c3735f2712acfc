"""The head of a folded model: spikes are weighted, and what comes of it is summed."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from a2os2a_jax.modules.linear import INIT

ORDERS = ("spikes", "counts", "bits")


class FoldedHead(nn.Module):
    """Sum over time and tokens of S kernel, then + bias: [B, T, N, D] -> [B, classes].

    order "spikes": as written, (S kernel) summed: T N D additions a class at most.
    order "counts": (sum of S) kernel, a product of counts and weights.
    order "bits":   sum over k of 2^k (plane_k kernel), plane_k [B, D] the k-th binary
                    digit of the counts: D additions a plane and class, and shifts.

    S in {0, ..., most}; or real, membranes, and then in the order "counts".

    The kernel holds 1 / (N T) of the means it stands for, or 1 / T where N is 1, with
    T = `timesteps`; with per_step the share of a step is multiplied by T, and comes as
    it is where T is 1: [B, T, classes].
    """

    classes: int
    order: str
    timesteps: int
    dtype: Any
    use_bias: bool = True
    most: int = 1

    @nn.compact
    def __call__(self, s: jax.Array, per_step: bool = False) -> jax.Array:
        shape = (s.shape[-1], self.classes)
        kernel = self.param("kernel", INIT, shape, self.dtype)
        axes = (2,) if per_step else (1, 2)
        if self.order == "spikes":
            y = jnp.tensordot(s.astype(self.dtype), kernel, 1).sum(axes)
        elif self.order == "counts":
            y = jnp.tensordot(s.astype(self.dtype).sum(axes), kernel, 1)
        else:
            most = self.most * math.prod(s.shape[axis] for axis in axes)
            y = self._by_digits(s.astype(jnp.int32).sum(axes), most, kernel)
        if per_step and self.timesteps != 1:
            y = self.timesteps * y
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, shape[1:], self.dtype)
        return y + bias.reshape((1,) * (y.ndim - 1) + shape[1:])

    def _by_digits(self, counts: jax.Array, most: int, kernel: jax.Array) -> jax.Array:
        planes = (
            (2.0**k, ((counts >> k) & 1).astype(self.dtype))
            for k in range(max(1, most.bit_length()))
        )
        return sum(share * jnp.tensordot(plane, kernel, 1) for share, plane in planes)
