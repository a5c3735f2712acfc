"""Linear maps and convolutions as the whole field initialises them."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

# timm's trunc_normal_(std=0.02) truncates at ±2 absolute, 100 standard deviations.
INIT = nn.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)
# PyTorch's own: uniform in ± 1 / sqrt(inputs of one output), biases as well.
INITS = {
    "normal": INIT,
    "torch": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}


def _bias_init(init: str, inputs: int | None):
    if init == "normal":
        return nn.initializers.zeros
    bound = 1 / math.sqrt(inputs)

    def uniform(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform


class Frozen(nn.Dense):
    """A Dense layer whose parameters get no gradient."""

    def param(self, *args, **kwargs):
        return jax.lax.stop_gradient(super().param(*args, **kwargs))


def linear(
    features: int,
    *,
    bias: bool,
    dtype,
    name: str,
    frozen: bool = False,
    init: str = "normal",
    inputs: int | None = None,
) -> nn.Dense:
    """[..., D] -> [..., features]; no gradient reaches the parameters of a frozen one.

    (An optimizer may still move them, by weight decay: `models` say which they are.)
    init: a key of INITS; inputs: D, which a bias with the init "torch" has to know.
    """
    return (Frozen if frozen else nn.Dense)(
        features,
        use_bias=bias,
        dtype=dtype,
        param_dtype=param_dtype(dtype),
        kernel_init=INITS[init],
        bias_init=_bias_init(init, inputs) if bias else nn.initializers.zeros,
        name=name,
    )


def conv(
    features: int,
    *,
    dtype,
    name: str,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    groups: int = 1,
    init: str = "normal",
) -> nn.Conv:
    """[..., H, W, C] -> [..., H', W', features], zero padding, no bias.

    kernel, stride, padding: in pixels, the same on both axes. groups: of channels that
    see each other alone.
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=padding,
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        param_dtype=param_dtype(dtype),
        kernel_init=INITS[init],
        name=name,
    )


def conv3x3(features: int, *, dtype, name: str, init: str = "normal") -> nn.Conv:
    """[..., H, W, C] -> [..., H, W, features], stride 1, zero padding 1, no bias."""
    return conv(features, dtype=dtype, name=name, init=init)


def param_dtype(dtype):
    """Parameters are float32, and float64 only where everything is."""
    return jnp.promote_types(dtype, jnp.float32)
