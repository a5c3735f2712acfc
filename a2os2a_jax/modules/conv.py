"""Convolutions made of several maps in training, and of one in inference."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from a2os2a_jax.modules.linear import conv, linear, param_dtype
from a2os2a_jax.modules.norm import BatchNorm


class RepConv(nn.Module):
    """A re-parameterised 3x3 convolution, [..., H, W, C] -> [..., H, W, features].

        BN(Linear(depthwise conv3x3(pad(BN(Linear(x))))))

    The border is filled with what BN makes of 0, so that one convolution of x, padded
    with zeros, gives the same (`merge`).
    Source: Yao et al. 2024 (Meta-SpikeFormer), arXiv:2404.03663; from the text. While
    training we fill the border by the batch's statistics.
    """

    features: int
    dtype: Any
    initial: str = "normal"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        how = dict(bias=False, dtype=self.dtype, init=self.initial)

        def norm(name, y, **border):
            make = BatchNorm(param_dtype=param_dtype(self.dtype), name=name)
            return make(y, train, **border).astype(self.dtype)

        c = x.shape[-1]
        y = norm("in_bn", linear(c, **how, name="in_linear")(x), border=1)
        how = dict(dtype=self.dtype, init=self.initial)
        y = conv(c, **how, padding=0, groups=c, name="depth_conv")(y)
        y = linear(self.features, bias=False, **how, name="out_linear")(y)
        return norm("out_bn", y)


def merge(params, stats, eps: float = BatchNorm.eps):
    """(kernel [3, 3, C, features], bias [features]) of the one convolution.

    Args:
      params, stats: of a `RepConv`, in the precision that is wanted.
    """

    def affine(name):
        factor = params[name]["scale"] / (stats[name]["var"] + eps) ** 0.5
        return factor, params[name]["bias"] - stats[name]["mean"] * factor

    (a, b), (c, d) = affine("in_bn"), affine("out_bn")
    first = params["in_linear"]["kernel"] * a[None]
    depth = params["depth_conv"]["kernel"][:, :, 0]  # [3, 3, C]
    last = params["out_linear"]["kernel"] * c[None]
    xp = np if isinstance(first, np.ndarray) else jnp
    kernel = xp.einsum("ic,hwc,co->hwio", first, depth, last)
    return kernel, (b * depth.sum((0, 1))) @ last + d
