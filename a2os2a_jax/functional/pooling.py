"""Maxima over windows of 3 x 3, padded with minus infinity: of spikes, spikes.

A tie, which spikes make common, sends its gradient to the first maximum in row-major
order, as in PyTorch. A window with a NaN gives NaN.
"""

import functools
import math

import jax
import jax.numpy as jnp


def max_pool(x: jax.Array) -> jax.Array:
    """Maxima of 3 x 3, stride 2: [..., H, W, C] -> [..., ⌈H / 2⌉, ⌈W / 2⌉, C]."""
    images = x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:])
    y = _max_of_nine(images, 1, 2, 2)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def max_of_neighbours(x: jax.Array, side: int) -> jax.Array:
    """Of every token and those around it on the image, stride 1, per channel.

    Args:
      x: [..., N, heads, d], the tokens of a square image, row by row.
      side: of that image in tokens, N = side².
    Returns:
      As x.
    Raises:
      ValueError: N is not side².
    """
    *batch, tokens, heads, d = x.shape
    if tokens != side**2:
        raise ValueError(
            f"max_of_neighbours: got x {x.shape} and side {side}, expected side² tokens"
        )
    image = x.reshape(math.prod(batch), side, side, heads * d)
    return _max_of_nine(image, 1, 2, 1).reshape(x.shape)


def max_of_entries(x: jax.Array) -> jax.Array:
    """Of every entry and those around it in the matrix [N, d] of its head, stride 1.

    What a pool over the last two axes does to [..., heads, N, d]: neighbours are the
    tokens before and after, in row-major order of the image, and the channels beside.

    Args:
      x: [..., N, heads, d].
    Returns:
      As x.
    Source: the public code of `attention.sdsa`, with dvs=True.
    """
    matrices = x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:])
    return _max_of_nine(matrices, 1, 3, 1).reshape(x.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _max_of_nine(x: jax.Array, rows: int, columns: int, stride: int) -> jax.Array:
    """x has four axes; `rows` and `columns` are the two that have the windows."""
    window, strides, borders = (
        [one if axis in (rows, columns) else other for axis in range(4)]
        for one, other in ((3, 1), (stride, 1), ((1, 1), (0, 0)))
    )
    # A number of Python: of an array jax does not see that it is the least.
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, borders)


@_max_of_nine.defjvp
def _(rows, columns, stride, primals, tangents):
    # The same maxima by selects, whose gradient XLA fuses; that of a windowed reduction
    # is slow on a CPU. Columns first: then the first of a row, and the first such row,
    # are the first in row-major order.
    def by_selects(x):
        return _max_of_three(_max_of_three(x, columns, stride), rows, stride)

    return jax.jvp(by_selects, primals, tangents)


def _max_of_three(x: jax.Array, axis: int, stride: int) -> jax.Array:
    """Of neighbours on one axis; the first of equals; NaN if one is NaN."""
    size = x.shape[axis]
    borders = [(int(i == axis), int(i == axis), 0) for i in range(x.ndim)]
    x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), borders)
    a, b, c = (
        jax.lax.slice_in_dim(x, i, i + size, stride, axis=axis) for i in range(3)
    )
    ab = jnp.where((b > a) | jnp.isnan(b), b, a)
    return jnp.where((c > ab) | jnp.isnan(c), c, ab)
