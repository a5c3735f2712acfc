"""RandAugment on the device, with the laws of timm and the pixels of Pillow.

Of every image each layer draws an operation and its strength. An operation is no branch
of the program but a row of numbers, an `Effect`, and a layer one pass that takes any:

    move    out(x, y) = image(a x + b y + c, d x + e y + f)       one resampling
    tone    posterize, solarize, add to what is dark, stretch     pixel by pixel
    rank    equalize: how many pixels are darker                  a table of 256
    blend   d + factor (x - d), d black, grey, the mean grey or a blurred image

so that a batch in which every image has an operation of its own costs what a batch of
one operation costs. Pixels are whole numbers 0 .. 255, rounded where Pillow rounds.

Source: Cubuk et al. 2020 (RandAugment), arXiv:1909.13719; the strengths are those of
timm, https://github.com/huggingface/pytorch-image-models, `timm/data/auto_augment.py`.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

LEVELS = 10.0  # magnitude at which an operation is at full strength
RESAMPLES = ("bilinear", "bicubic")

OPS = {
    "timm": (
        "AutoContrast",
        "Equalize",
        "Invert",
        "Rotate",
        "Posterize",
        "Solarize",
        "SolarizeAdd",
        "Color",
        "Contrast",
        "Brightness",
        "Sharpness",
        "ShearX",
        "ShearY",
        "TranslateXRel",
        "TranslateYRel",
    ),
    "spikformer": ("Equalize", "Rotate", "ShearX", "TranslateXRel", "TranslateYRel"),
}


class Policy(NamedTuple):
    """What "rand-m9-n1-mstd0.4-inc1" says; the defaults are timm's.

    Attributes:
      magnitude: m, strength of the operations; 10 is full.
      layers: n, operations one after the other.
      std: mstd, of a normal number added to m for each of them; inf: a uniform number
        in [0, m] instead.
      most: mmax, what magnitudes are cut off at, as they are at 0.
      increasing: inc, of the operations with two scales take the one on which a higher
        magnitude always changes more.
      probability: p, of an operation that was drawn to be done.
    """

    magnitude: float = LEVELS
    layers: int = 2
    std: float = 0.0
    most: float = LEVELS
    increasing: bool = False
    probability: float = 0.5


_EXPECTED = (
    'e.g. "rand-m9-n1-mstd0.4-inc1": rand, then m (magnitude >= 0), n (layers, '
    "1, 2, ...), mstd (>= 0 or inf), mmax (> 0), inc (0 or 1), p (0 to 1)"
)
_FIELDS = {  # of a section: the field, and what its number has to satisfy
    "m": ("magnitude", lambda x: 0 <= x < math.inf),
    "n": ("layers", lambda x: x >= 1 and x % 1 == 0),
    "mstd": ("std", lambda x: x >= 0),
    "mmax": ("most", lambda x: 0 < x < math.inf),
    "inc": ("increasing", lambda x: x in (0, 1)),
    "p": ("probability", lambda x: 0 <= x <= 1),
}


def parse(text: str) -> Policy:
    """The policy a string of timm's grammar describes.

    As in timm an mstd above 100 is infinite. There inc0 means inc1; here it means 0.

    Raises:
      ValueError: another grammar, or a number out of its range.
    """
    head, *sections = text.split("-")
    found = {}
    for section in sections:
        match = re.fullmatch(r"([a-z]+?)(inf|\d+(?:\.\d*)?)", section)
        key = match and match[1]
        if key not in _FIELDS or key in found:
            break
        number = float(match[2])
        if not _FIELDS[key][1](number):
            break
        found[key] = number
    if head != "rand" or len(found) != len(sections):
        raise ValueError(f"augment.randaugment: got {text!r}, expected {_EXPECTED}")
    policy = Policy(**{_FIELDS[key][0]: number for key, number in found.items()})
    return policy._replace(
        layers=int(policy.layers),
        increasing=bool(policy.increasing),
        std=math.inf if policy.std > 100 else policy.std,
    )


class Effect(NamedTuple):
    """What one pass does to one image, numbers or arrays []; by default nothing.

    Attributes:
      matrix: (a, b, c, d, e, f), see above; x and y count pixels from the top left
        corner, so that the first pixel has its middle at (1/2, 1/2).
      step: values become multiples of it, downwards.
      threshold: values from it on become 255 less themselves.
      add: to values below 128, up to 255.
      stretch: 1: the darkest value of a channel becomes 0, the lightest 255.
      equalize: 1: equalize the histogram of each channel.
      towards, factor: blend, from 0 = black, 1 = mean grey, 2 = grey, 3 = blurred;
        factor 0 is that, 1 the image itself, above 1 it goes on beyond.
    """

    matrix: tuple = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    step: float | jax.Array = 1.0
    threshold: float | jax.Array = 256.0
    add: float | jax.Array = 0.0
    stretch: float = 0.0
    equalize: float = 0.0
    towards: float = 0.0
    factor: float | jax.Array = 1.0


_BLACK, _MEAN, _GREY, _BLURRED = 0.0, 1.0, 2.0, 3.0


def _rotation(degrees, height: int, width: int) -> Effect:
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    x, y = width / 2, height / 2
    matrix = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    return Effect(matrix=matrix)


def _posterized(bits, *_) -> Effect:
    bits = jnp.clip(jnp.asarray(bits, jnp.int32), 0, 8)  # 0: black, as of old in Pillow
    return Effect(step=jnp.left_shift(1, 8 - bits).astype(jnp.float32))


# name -> (argument, height, width) -> Effect; arguments are those of timm's functions.
EFFECTS: dict[str, Callable[..., Effect]] = {
    "AutoContrast": lambda *_: Effect(stretch=1.0),
    "Equalize": lambda *_: Effect(equalize=1.0),
    "Invert": lambda *_: Effect(threshold=0.0),
    "Rotate": _rotation,
    "Posterize": _posterized,
    "Solarize": lambda x, *_: Effect(threshold=x),
    "SolarizeAdd": lambda x, *_: Effect(add=x),
    "Color": lambda x, *_: Effect(towards=_GREY, factor=x),
    "Contrast": lambda x, *_: Effect(towards=_MEAN, factor=x),
    "Brightness": lambda x, *_: Effect(towards=_BLACK, factor=x),
    "Sharpness": lambda x, *_: Effect(towards=_BLURRED, factor=x),
    "ShearX": lambda x, *_: Effect(matrix=(1.0, x, 0.0, 0.0, 1.0, 0.0)),
    "ShearY": lambda x, *_: Effect(matrix=(1.0, 0.0, 0.0, x, 1.0, 0.0)),
    "TranslateXRel": lambda x, h, w: Effect(matrix=(1.0, 0.0, x * w, 0.0, 1.0, 0.0)),
    "TranslateYRel": lambda x, h, w: Effect(matrix=(1.0, 0.0, 0.0, 0.0, 1.0, x * h)),
}

_MOVES = frozenset({"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"})
_BLENDS = frozenset({"Color", "Contrast", "Brightness", "Sharpness"})
_TONES = frozenset({"AutoContrast", "Invert", "Posterize", "Solarize", "SolarizeAdd"})


def _bits(m):
    return jnp.floor(m * 4 / LEVELS)


def _light(m):
    return jnp.minimum(jnp.floor(m * 256 / LEVELS), 256)


# name -> (magnitude, sign) -> argument. Two scales where timm has a second one, called
# Increasing; on the first, Posterize and Solarize do less the higher the magnitude, and
# the blends pass from one side of the image to the other.
_SAME = {
    "AutoContrast": lambda m, s: 0.0 * m,  # takes none
    "Equalize": lambda m, s: 0.0 * m,
    "Invert": lambda m, s: 0.0 * m,
    "Rotate": lambda m, s: s * 30 * m / LEVELS,
    "SolarizeAdd": lambda m, s: jnp.minimum(jnp.floor(m * 110 / LEVELS), 128),
    "ShearX": lambda m, s: s * 0.3 * m / LEVELS,
    "ShearY": lambda m, s: s * 0.3 * m / LEVELS,
    "TranslateXRel": lambda m, s: s * 0.45 * m / LEVELS,
    "TranslateYRel": lambda m, s: s * 0.45 * m / LEVELS,
}
ARGUMENTS = _SAME | {
    "Posterize": lambda m, s: _bits(m),
    "Solarize": lambda m, s: _light(m),
    **dict.fromkeys(_BLENDS, lambda m, s: 0.1 + 1.8 * m / LEVELS),
}
INCREASING = _SAME | {
    "Posterize": lambda m, s: 4 - _bits(m),
    "Solarize": lambda m, s: 256 - _light(m),
    **dict.fromkeys(_BLENDS, lambda m, s: jnp.maximum(0.1, 1 + s * 0.9 * m / LEVELS)),
}


class Draw(NamedTuple):
    """Of one image in one layer, arrays []: op: index; done: bool; sign: -1 or 1."""

    op: jax.Array
    done: jax.Array
    magnitude: jax.Array
    sign: jax.Array


def draw(key: jax.Array, policy: Policy, count: int) -> Draw:
    """One of `count` operations, each as likely, and how it is done."""
    which, whether, how, way = jax.random.split(key, 4)
    magnitude = jnp.float32(policy.magnitude)
    if math.isinf(policy.std):
        magnitude = magnitude * jax.random.uniform(how, (), jnp.float32)
    else:
        magnitude = magnitude + policy.std * jax.random.normal(how, (), jnp.float32)
    return Draw(
        op=jax.random.randint(which, (), 0, count),
        done=jax.random.uniform(whether, (), jnp.float32) < policy.probability,
        magnitude=jnp.clip(magnitude, 0, policy.most),
        sign=jax.random.rademacher(way, (), jnp.float32),
    )


def check_names(ops: str, resample: str) -> None:
    """ValueError for a list of operations or a filter that does not exist."""
    for name, got, known in (
        ("ops", ops, tuple(OPS)),
        ("resample", resample, RESAMPLES),
    ):
        if got not in known:
            expected = " or ".join(map(repr, known))
            raise ValueError(f"augment.{name}: got {got!r}, expected {expected}")


def transform(
    policy: Policy,
    *,
    ops: str = "timm",
    resample: str = "bilinear",
    fill: float | Sequence[float] = 128.0,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(key, image [H, W, C]) -> [H, W, C], to be mapped over a batch.

    Args:
      ops: a name in OPS; drawn with replacement.
      resample: of the geometric operations, "bilinear" or "bicubic".
      fill: colour outside the image, a pixel value or one a channel; in timm the mean
        of the data.
    Returns:
      For float32 images of whole numbers 0 .. 255; C is 1 or 3.
    Raises:
      ValueError: an unknown name; at trace time, images of another shape.
    """
    check_names(ops, resample)
    names = OPS[ops]
    scale = INCREASING if policy.increasing else ARGUMENTS

    def effect(d: Draw, height: int, width: int) -> Effect:
        each = [
            EFFECTS[name](scale[name](d.magnitude, d.sign), height, width)
            for name in names
        ]
        which = jnp.where(d.done, d.op, len(names))
        return jax.tree.map(lambda *x: jnp.stack(x)[which], *each, Effect())

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        _check_image(image.shape)
        for layer in range(policy.layers):
            drawn = draw(jax.random.fold_in(key, layer), policy, len(names))
            image = _one_pass(
                image,
                effect(drawn, *image.shape[:2]),
                names=names,
                resample=resample,
                fill=fill,
            )
        return image

    return one


@functools.partial(jax.jit, static_argnames=("name", "resample"))
def apply(
    name: str,
    images: jax.Array,
    argument: float | jax.Array = 0.0,
    *,
    resample: str = "bilinear",
    fill: float | Sequence[float] | jax.Array = 128.0,
) -> jax.Array:
    """One named operation, on all images.

    Args:
      name: a key of EFFECTS.
      images: [B, H, W, C], C 1 or 3, whole numbers 0 .. 255 of any dtype.
      argument: [] or [B]. Rotate: degrees anticlockwise; Posterize: bits that are kept;
        Solarize: the first value that is inverted; SolarizeAdd: what is added;
        Color, Contrast, Brightness, Sharpness: the factor, 1 for no change; ShearX,
        ShearY: pixels a pixel; TranslateXRel, TranslateYRel: share of the width or
        height. The others take none.
      fill: a pixel value or [C].
    Returns:
      Shape and dtype of `images`.
    """
    if name not in EFFECTS:
        raise ValueError(f"randaugment.apply: got {name!r}, expected {list(EFFECTS)}")
    _check_image(images.shape[1:])
    argument = jnp.broadcast_to(jnp.asarray(argument, jnp.float32), images.shape[:1])

    def one(image: jax.Array, argument: jax.Array) -> jax.Array:
        effect = EFFECTS[name](argument, *image.shape[:2])
        return _one_pass(image, effect, names=(name,), resample=resample, fill=fill)

    return jax.vmap(one)(images.astype(jnp.float32), argument).astype(images.dtype)


def _check_image(shape: Sequence[int]) -> None:
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise ValueError(
            f"augment.randaugment: got images {tuple(shape)}, expected (H, W, 1) or "
            "(H, W, 3)"
        )


def _one_pass(
    image: jax.Array,
    effect: Effect,
    *,
    names: Sequence[str],
    resample: str,
    fill: float | Sequence[float],
) -> jax.Array:
    """The effect on [H, W, C]; parts that none of the names needs are left out."""
    names = set(names)
    if names & _MOVES:
        image = _move(image, effect.matrix, resample, fill)
    if names & _TONES:
        image = _tone(image, effect)
    if "Equalize" in names:
        image = jnp.where(effect.equalize > 0, _equalize(image), image)
    if names & _BLENDS:
        image = _blend(image, effect.towards, effect.factor)
    return image


def _move(image: jax.Array, matrix: tuple, resample: str, fill) -> jax.Array:
    """One resampling; outside the image is `fill`, and its border pixels go on.

    Cubic is that of Keys with a = -1, as in Pillow's `transform` (its `resize` has
    a = -1/2).
    """
    height, width, channels = image.shape
    a, b, c, d, e, f = matrix
    across = (jnp.arange(width, dtype=jnp.float32) + 0.5)[None, :]
    down = (jnp.arange(height, dtype=jnp.float32) + 0.5)[:, None]
    x, y = a * across + b * down + c, d * across + e * down + f
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x - 0.5, y - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    right, low = (x - left)[..., None], (y - top)[..., None]
    mix, first, count = (_cubic, -1, 4) if resample == "bicubic" else (_linear, 0, 2)

    # Gathers: one line after the other, fused into the sums. Windows of 2x2 or 4x4 and
    # products with dense weights were measured, and took 3 to 60 times as long.
    pixels = image.reshape(height * width, channels)
    steps = range(first, first + count)
    columns = [jnp.clip(left + i, 0, width - 1).astype(jnp.int32) for i in steps]
    rows = [jnp.clip(top + i, 0, height - 1).astype(jnp.int32) for i in steps]

    def pixel(row, column):
        return pixels.at[row * width + column].get(mode="promise_in_bounds")

    lines = [mix(*(pixel(row, column) for column in columns), right) for row in rows]
    moved = jnp.floor(jnp.clip(mix(*lines, low), 0, 255))
    fill = jnp.broadcast_to(jnp.asarray(fill, image.dtype), (1, 1, channels))
    return jnp.where(inside[..., None], moved, fill)


def _linear(p, q, t):
    return p + (q - p) * t  # in this form a constant stays one to the bit


def _cubic(o, p, q, r, t):
    third, second = p - o + r - q, 2 * (o - p) + q - r
    return p + t * (q - o + t * (second + t * third))


def _tone(image: jax.Array, effect: Effect) -> jax.Array:
    """Posterize, solarize, add, stretch; all but one of them change nothing."""
    x = jnp.floor(image / effect.step) * effect.step
    x = jnp.where(x >= effect.threshold, 255 - x, x)
    x = jnp.where(x < 128, jnp.minimum(x + effect.add, 255), x)
    whole = x.astype(jnp.int32)  # so that quotients are exact
    low = whole.min((0, 1), keepdims=True)
    span = whole.max((0, 1), keepdims=True) - low
    stretched = 255 * (whole - low) // jnp.maximum(span, 1)
    do = (effect.stretch > 0) & (span > 0)
    return jnp.where(do, stretched.astype(x.dtype), x)


def _equalize(image: jax.Array) -> jax.Array:
    """Every channel by itself: value v becomes (s // 2 + n(v)) // s, at most 255.

    n(v) counts the pixels darker than v, and s = n(lightest) // 255; with s = 0, in
    small or even images, nothing changes.
    """

    def channel(x: jax.Array) -> jax.Array:
        count = jnp.zeros(256, jnp.int32).at[x.ravel()].add(1)
        darker = jnp.cumsum(count) - count
        s = jnp.where(count > 0, darker, 0).max() // 255
        table = jnp.minimum((s // 2 + darker) // jnp.maximum(s, 1), 255)
        return jnp.where(s > 0, table.at[x].get(mode="promise_in_bounds"), x)

    whole = image.astype(jnp.int32)
    return jax.vmap(channel, -1, -1)(whole).astype(image.dtype)


def _blend(image: jax.Array, towards: jax.Array, factor: jax.Array) -> jax.Array:
    """From black, mean grey, grey or the blurred image, by the number `towards`."""
    light = grey(image)
    start = jnp.where(towards == _MEAN, mean_grey(light), 0.0)
    start = jnp.where(towards == _GREY, light, start)
    start = jnp.where(towards == _BLURRED, _blurred(image), start)
    return blend(start, image, factor)


def blend(start: jax.Array, image: jax.Array, factor: float | jax.Array) -> jax.Array:
    """start + factor (image - start), cut off at 0 and 255, rounded down.

    Source: Haeberli and Voorhies 1994, Image processing by interpolation and
    extrapolation.
    """
    return jnp.floor(jnp.clip(start + factor * (image - start), 0, 255))


def grey(image: jax.Array) -> jax.Array:
    """Luma of [..., H, W, 3] as [..., H, W, 1], rounded; one channel is grey already.

    Weights of ITU-R BT.601 in parts of 2^16: all sums are below 2^24, hence exact.
    """
    if image.shape[-1] == 1:
        return image
    red, green, blue = (image[..., i : i + 1] for i in range(3))
    return jnp.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)


def mean_grey(light: jax.Array) -> jax.Array:
    """Mean of [..., H, W, 1] as [..., 1, 1, 1], rounded."""
    count = light.shape[-3] * light.shape[-2]
    total = light.astype(jnp.int32).sum((-3, -2, -1), keepdims=True)
    return jnp.floor(total / count + 0.5)


def _blurred(image: jax.Array) -> jax.Array:
    """Means over 3x3 in which the middle counts 5 of 13; the border stays."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    rows = image[:-2] + image[1:-1] + image[2:]
    inner = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image[1:-1, 1:-1]
    inner = jnp.floor(inner / 13 + 0.5)
    return image.at[1:-1, 1:-1].set(inner)
