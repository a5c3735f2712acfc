"""Augmentation on the device: (key, images) -> images, a pure function.

Every example draws from a key of its own, fold_in(key, position in the batch): what
happens to it depends neither on the other examples nor on the number of devices.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from a2os2a_jax.data import randaugment as policies

Augment = Callable[[jax.Array, jax.Array], jax.Array]
Numbers = float | Sequence[float]

_AREA, _ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of what is erased, as in timm
_TRIES = 10


def build(
    *,
    crop: int = 0,
    flip: bool = False,
    shift: float = 0.0,
    rotate: float = 0.0,
    zoom: float = 0.0,
    jitter: float = 0.0,
    randaugment: str | None = None,
    ops: str = "timm",
    resample: str = "bilinear",
    erase: float = 0.0,
    roll: int = 0,
    cutout: int = 0,
    drop: float = 0.0,
    fill: Numbers = 0.0,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> Augment | None:
    """A jitted (key, images) -> images, or None if nothing is to be done.

    What is asked for happens in the order of the arguments.

    Args:
      crop: pixels; the image gets a border of `fill` so wide, and a random part of its
        old size is cut out: a shift by whole pixels.
      flip: mirror left and right, with probability 1/2.
      shift: pixels, down and right by a uniform number in [-shift, shift] each.
      rotate: degrees, by a uniform angle in [-rotate, rotate].
      zoom: magnify by a uniform factor in [1 - zoom, 1 + zoom]; below 1.
      jitter: brightness, contrast and saturation, in random order, each by a uniform
        factor in [1 - jitter, 1 + jitter]; at most 1. See `jittered`.
      randaugment: a policy of `randaugment.parse`, "rand-m9-n1-mstd0.4-inc1".
      ops, resample: of it, see `randaugment.transform`; its fill is the mean colour.
      erase: with this probability a rectangle becomes 0, the mean. See `erased`.
      roll: pixels, down and right by a whole number in [-roll, roll] each; what leaves
        at one side comes in at the other.
      cutout: pixels, side of a square anywhere within the image that becomes 0.
      drop: every value becomes 0 with this probability, each by itself; below 1. Of
        frames of events this keeps as many events as dropping each with the same
        probability would, but events counted in one value go or stay together.
      fill: what lies outside an image, a number or one a channel: `Dataset.black`.
      mean, std: of the normalisation x = (pixel / 255 - mean) / std, a number or one a
        channel. jitter and randaugment undo it, work on whole pixel values 0 .. 255,
        and normalise again.
    Returns:
      For images [B, H, W, C], or [B, T, H, W, C] with one transform for all T; `drop`
      alone draws anew for every frame. randaugment takes no frames.
    Raises:
      ValueError: an amount out of its range, an unknown name; at trace time, images of
        other ranks, sides below cutout, channels other than 1 or 3 where pixels are
        needed.
    """
    for name, count in {"crop": crop, "roll": roll, "cutout": cutout}.items():
        if count < 0 or count != int(count):
            raise ValueError(f"augment.{name}: got {count}, expected 0, 1, 2, ...")
    for name, amount in {"shift": shift, "rotate": rotate, "zoom": zoom}.items():
        if amount < 0:
            raise ValueError(f"augment.{name}: got {amount}, expected at least 0")
    for name, share in {"jitter": jitter, "erase": erase}.items():
        if not 0 <= share <= 1:
            raise ValueError(f"augment.{name}: got {share}, expected 0 to 1")
    if zoom >= 1:
        raise ValueError(f"augment.zoom: got {zoom}, expected below 1")
    if not 0 <= drop < 1:
        raise ValueError(f"augment.drop: got {drop}, expected 0 <= it < 1")
    policies.check_names(ops, resample)
    moves = bool(shift or rotate or zoom)
    policy = None
    if randaugment is not None:
        middle = np.round(255 * np.clip(np.asarray(mean, np.float32), 0, 1))
        policy = policies.transform(
            policies.parse(randaugment), ops=ops, resample=resample, fill=middle
        )
    pixels = bool(jitter) or policy is not None
    if not (flip or moves or crop or pixels or erase or roll or cutout or drop):
        return None

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        u = jax.random.uniform(key, (5,), jnp.float32, -1, 1)
        if crop:
            offset = _whole(_key(key, "crop"), crop)
            image = _shifted(image, offset, fill)
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
        if pixels:
            x = _to_pixels(image, mean, std)
            if jitter:
                x = jittered(_key(key, "jitter"), x, jitter)
            if policy is not None:
                x = policy(_key(key, "randaugment"), x)
            image = _from_pixels(x, mean, std).astype(image.dtype)
        if erase:
            image = erased(_key(key, "erase"), image, erase)
        if roll:
            image = jnp.roll(image, _whole(_key(key, "roll"), roll), (-3, -2))
        if cutout:
            image = _cut(_key(key, "cutout"), image, int(cutout))
        if drop:
            u = jax.random.uniform(_key(key, "drop"), image.shape, jnp.float32)
            image = jnp.where(u < drop, 0, image)
        return image

    @jax.jit
    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        _check_images(images.shape, pixels, policy is not None, cutout)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(images)))
        return jax.vmap(one)(keys, images)

    return augment


def _check_images(shape: Sequence[int], pixels: bool, still: bool, cutout: int) -> None:
    if len(shape) not in (4, 5):
        raise ValueError(
            f"augment: got {shape}, expected [B, H, W, C] or [B, T, H, W, C]"
        )
    if still and len(shape) == 5:
        raise ValueError(
            f"augment.randaugment: got {shape}, expected [B, H, W, C]: frames are no "
            "pictures"
        )
    if pixels and shape[-1] not in (1, 3):
        name = "randaugment" if still else "jitter"
        raise ValueError(f"augment.{name}: got {shape}, expected 1 or 3 channels")
    if cutout > min(shape[-3:-1]):
        raise ValueError(
            f"augment.cutout: got {cutout}, expected at most {min(shape[-3:-1])}, the "
            "side of the images"
        )


def _key(key: jax.Array, name: str) -> jax.Array:
    """A key of its own for each kind: asking for one more leaves the others alone."""
    return jax.random.fold_in(key, int.from_bytes(name[:4].encode()))


def _whole(key: jax.Array, most: int) -> jax.Array:
    """[2] whole numbers in [-most, most]."""
    return jax.random.randint(key, (2,), -int(most), int(most) + 1)


def _to_pixels(image: jax.Array, mean: Numbers, std: Numbers) -> jax.Array:
    """Whole numbers 0 .. 255, float32."""
    mean, std = _channels(mean, image), _channels(std, image)
    x = 255 * (image.astype(jnp.float32) * std + mean)
    return jnp.clip(jnp.round(x), 0, 255)


def _from_pixels(pixels: jax.Array, mean: Numbers, std: Numbers) -> jax.Array:
    return (pixels / 255 - _channels(mean, pixels)) / _channels(std, pixels)


def _channels(numbers: Numbers, image: jax.Array) -> jax.Array:
    """A number, or one a channel, in the rank of the image."""
    numbers = jnp.asarray(numbers, jnp.float32)
    return numbers.reshape((1,) * (image.ndim - 1) + (-1,))


def _shifted(image: jax.Array, offset: jax.Array, fill: Numbers) -> jax.Array:
    """[..., H, W, C], down and right by whole pixels; `fill` comes in."""
    for axis, by in ((-3, offset[0]), (-2, offset[1])):
        size = image.shape[axis]
        source = jnp.arange(size) - by
        rows = jnp.take(image, jnp.clip(source, 0, size - 1), axis)
        inside = ((source >= 0) & (source < size)).reshape((-1,) + (1,) * (-1 - axis))
        inside = jnp.broadcast_to(inside, image.shape)
        outside = jnp.broadcast_to(jnp.asarray(fill, image.dtype), image.shape)
        image = jnp.where(inside, rows, outside)
    return image


def jittered(key: jax.Array, pixels: jax.Array, amount: float) -> jax.Array:
    """Brightness, contrast and saturation, in random order, as ColorJitter has it.

        d + factor (x - d), factor uniform in [1 - amount, 1 + amount]

    with d black, the mean grey of the frame, and the grey of the pixel; see
    `randaugment.blend`.

    Args:
      pixels: [..., H, W, C], whole numbers 0 .. 255, C 1 or 3; one draw for all of it.
    """
    order, how = jax.random.split(key)
    order = jax.random.permutation(order, 3)
    factors = jax.random.uniform(how, (3,), jnp.float32, 1 - amount, 1 + amount)
    for which in order:
        light = policies.grey(pixels)
        black, even = jnp.zeros_like(light), policies.mean_grey(light)
        start = jnp.where(which == 2, light, jnp.where(which == 1, even, black))
        pixels = policies.blend(start, pixels, factors[which])
    return pixels


def erased(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
    """With a probability, a rectangle of [..., H, W, C] becomes 0, alike in all `...`.

    Its share of the area is uniform in [0.02, 1/3], the logarithm of height / width
    uniform between those of 0.3 and 1/0.3, its sides are rounded, and all places are as
    likely. Of ten such draws the first that is smaller than the image in both
    directions is taken; if there is none, nothing happens.

    Source: Zhong et al. 2017, arXiv:1708.04896; timm's `RandomErasing`, mode const.
    """
    height, width = image.shape[-3:-1]
    whether, what, shape, where = jax.random.split(key, 4)
    area = jax.random.uniform(what, (_TRIES,), jnp.float32, *_AREA) * height * width
    bounds = (math.log(a) for a in _ASPECT)
    aspect = jnp.exp(jax.random.uniform(shape, (_TRIES,), jnp.float32, *bounds))
    sides = jnp.round(jnp.sqrt(jnp.stack([area * aspect, area / aspect])))
    sides = sides.astype(jnp.int32)
    fits = (sides[0] < height) & (sides[1] < width)
    inside = _rectangle(where, sides[:, fits.argmax()], height, width)
    do = (jax.random.uniform(whether, (), jnp.float32) < probability) & fits.any()
    return _cleared(image, inside & do)


def _cut(key: jax.Array, image: jax.Array, side: int) -> jax.Array:
    """A square of [..., H, W, C] becomes 0."""
    sides = jnp.full((2,), side, jnp.int32)
    return _cleared(image, _rectangle(key, sides, *image.shape[-3:-1]))


def _rectangle(key: jax.Array, sides: jax.Array, height: int, width: int) -> jax.Array:
    """Bool [H, W], True in a rectangle of these sides [2] anywhere within the image."""
    room = jnp.array([height, width]) - sides
    top, left = jax.random.randint(key, (2,), 0, room + 1)
    down, across = jnp.arange(height) - top, jnp.arange(width) - left
    down, across = (down >= 0) & (down < sides[0]), (across >= 0) & (across < sides[1])
    return down[:, None] & across[None, :]


def _cleared(image: jax.Array, inside: jax.Array) -> jax.Array:
    inside = jnp.broadcast_to(inside[..., None], image.shape[-3:])
    return jnp.where(jnp.broadcast_to(inside, image.shape), 0, image)


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
