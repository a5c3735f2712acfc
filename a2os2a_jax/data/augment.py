"""Augmentation on the device: (key, images) -> images, a pure function.

Every example draws from a key of its own, fold_in(key, position in the batch): what
happens to it depends neither on the other examples nor on the number of devices.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def build(
    *,
    flip: bool = False,
    shift: float = 0.0,
    rotate: float = 0.0,
    zoom: float = 0.0,
    fill: float | Sequence[float] = 0.0,
) -> Augment | None:
    """A jitted (key, images) -> images, or None if nothing is to be done.

    Args:
      flip: mirror left and right, with probability 1/2.
      shift: pixels, down and right by a uniform number in [-shift, shift] each.
      rotate: degrees, by a uniform angle in [-rotate, rotate].
      zoom: magnify by a uniform factor in [1 - zoom, 1 + zoom]; below 1.
      fill: what lies outside an image, a number or one a channel: `Dataset.black`.
    Returns:
      For images [B, H, W, C], or [B, T, H, W, C] with one transform for all T.
    Raises:
      ValueError: a negative amount, zoom >= 1; at trace time, images of other ranks.
    """
    for name, amount in {"shift": shift, "rotate": rotate, "zoom": zoom}.items():
        if amount < 0:
            raise ValueError(f"augment.{name}: got {amount}, expected at least 0")
    if zoom >= 1:
        raise ValueError(f"augment.zoom: got {zoom}, expected below 1")
    moves = bool(shift or rotate or zoom)
    if not (flip or moves):
        return None

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        u = jax.random.uniform(key, (5,), jnp.float32, -1, 1)
        if flip:
            image = jnp.where(u[4] < 0, image[..., ::-1, :], image)
        if moves:
            image = affine(
                image,
                shift=shift * u[:2],
                rotate=rotate * u[2],
                zoom=1 + zoom * u[3],
                fill=fill,
            )
        return image

    @jax.jit
    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        if images.ndim not in (4, 5):
            raise ValueError(
                f"augment: got {images.shape}, expected [B, H, W, C] or [B, T, H, W, C]"
            )
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(images)))
        return jax.vmap(one)(keys, images)

    return augment


def affine(
    image: jax.Array,
    *,
    shift: jax.Array,
    rotate: jax.Array,
    zoom: jax.Array,
    fill: float | Sequence[float] = 0.0,
) -> jax.Array:
    """Turns and magnifies an image about its centre c, then shifts it; bilinear.

        out(p) = image(c + R(-rotate) (p - c - shift) / zoom)

    Args:
      image: [..., H, W, C], e.g. all frames of one example.
      shift: [2] pixels, down and right.
      rotate: [] degrees, anticlockwise as seen on a screen.
      zoom: [] factor; 2 shows the middle at twice the size.
      fill: value outside the image, a number or [C].
    """
    if image.ndim > 3:
        move = functools.partial(
            affine, shift=shift, rotate=rotate, zoom=zoom, fill=fill
        )
        return jax.vmap(move)(image)
    height, width, channels = image.shape
    angle = jnp.deg2rad(rotate)
    cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    cy, cx = (height - 1) / 2, (width - 1) / 2
    dy = (jnp.arange(height, dtype=jnp.float32) - cy - shift[0])[:, None]
    dx = (jnp.arange(width, dtype=jnp.float32) - cx - shift[1])[None, :]
    y = cy + cos * dy + sin * dx  # rows point down, hence the signs
    x = cx - sin * dy + cos * dx

    pixels = image.reshape(height * width, channels)
    fill = jnp.broadcast_to(jnp.asarray(fill, image.dtype), image.shape)

    def corner(row, column):
        weight = (1 - jnp.abs(y - row)) * (1 - jnp.abs(x - column))
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = jnp.where(inside, row * width + column, 0).astype(jnp.int32)
        value = jnp.where(inside[..., None], pixels[index], fill)
        return weight[..., None].astype(image.dtype) * value

    top, left = jnp.floor(y), jnp.floor(x)
    return sum(corner(top + i, left + j) for i in (0, 1) for j in (0, 1))
