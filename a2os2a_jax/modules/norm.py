"""Batch normalisation over batch, time and positions together."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """y = gain (x - mean) / sqrt(var + eps) + bias, per channel (the last axis).

    In training mean and variance are those of the batch, over all axes but the last:
    batch, time and positions together; normalisation takes the biased variance, the
    running variance the unbiased one, as PyTorch does. Under jit with a sharded batch
    these are the statistics of the global batch. Computed in at least float32, which is
    also the dtype of y: it goes onto a membrane.

    gain: initial gain. momentum: share of the old running value that is kept.
    folded: y = x + bias, for the weights in front of it hold the rest (`models.fold`).
    Source: Ioffe and Szegedy 2015, arXiv:1502.03167.
    """

    gain: float = 1.0
    momentum: float = 0.9
    eps: float = 1e-5
    param_dtype: jnp.dtype = jnp.float32
    folded: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, repeats: int = 1, border: int = 0
    ) -> jax.Array:
        """x [..., C]; `repeats`: how many times each value stands for itself.

        A static image computed once stands for T frames: mean and biased variance stay,
        and n of the unbiased variance is T times larger.
        border: pixels around x [..., H, W, C] in which y is that of 0.
        """
        shape, make = x.shape[-1:], nn.initializers.constant
        bias = self.param("bias", make(0.0), shape, self.param_dtype)
        if self.folded:
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            return x + _like(bias, x)
        scale = self.param("scale", make(self.gain), shape, self.param_dtype)
        ra_mean = self.variable(
            "batch_stats", "mean", jnp.zeros, shape, self.param_dtype
        )
        ra_var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            var = jnp.square(x - _like(mean, x)).mean(axes)
            if not self.is_initializing():
                n = x.size // x.shape[-1] * repeats
                keep, new = self.momentum, 1 - self.momentum
                ra_mean.value = keep * ra_mean.value + new * mean
                ra_var.value = keep * ra_var.value + new * var * (n / max(n - 1, 1))
        else:
            mean, var = ra_mean.value, ra_var.value
        if border:
            x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(border, border)] * 2 + [(0, 0)])
        factor = scale * jax.lax.rsqrt(var + self.eps)
        return (x - _like(mean, x)) * _like(factor, x) + _like(bias, x)


def _like(vector: jax.Array, x: jax.Array) -> jax.Array:
    """[C] as [1, ..., 1, C] (the tests refuse implicit rank promotion)."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)
