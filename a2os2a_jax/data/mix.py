"""Mixup and CutMix on the device: two examples of a batch in one, and their labels.

    mixup    lambda x + (1 - lambda) x'
    cutmix   x with a box of it replaced by that of x', of area 1 - lambda

The partner x' of an example is the one at the same place from the end of the batch, and
one lambda holds for all of it, as in timm's mode "batch".
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Mix = Callable[
    [jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]
]


def build(mixup: float = 0.0, cutmix: float = 0.0) -> Mix | None:
    """(key, images, targets, on) -> (images, targets), or None if both are 0.

    Args:
      mixup: alpha, lambda ~ Beta(alpha, alpha); 0: no mixup.
      cutmix: alpha of CutMix. If both are given, each batch has one of them, with
        probability 1/2.
    Returns:
      A pure function of images [B, H, W, C] or [B, T, H, W, C], whose frames share one
      box; targets [B, C], each a distribution over the classes; on: bool [], may be
      traced. Off, both come back as they were, to the bit.
    Raises:
      ValueError: a negative alpha; at trace time, images of another rank.
    Source: Zhang et al. 2018 (mixup), arXiv:1710.09412; Yun et al. 2019 (CutMix),
      arXiv:1905.04899; timm, https://github.com/huggingface/pytorch-image-models.
    """
    for name, alpha in {"mixup": mixup, "cutmix": cutmix}.items():
        if not 0 <= alpha < math.inf:
            raise ValueError(f"augment.{name}: got {alpha}, expected at least 0")
    if not (mixup or cutmix):
        return None

    def mix(key, images, targets, on):
        if images.ndim not in (4, 5):
            raise ValueError(
                f"augment.mixup: got {images.shape}, expected [B, H, W, C] or "
                "[B, T, H, W, C]"
            )
        which, how, where = jax.random.split(key, 3)
        cuts = jax.random.bernoulli(which) if mixup and cutmix else bool(cutmix)
        alpha = jnp.where(cuts, jnp.float32(cutmix), jnp.float32(mixup))
        lam = jax.random.beta(how, alpha, alpha)
        inside = box(where, lam, *images.shape[-3:-1])
        replaced = cuts & inside
        share = jnp.where(cuts, 1 - inside.mean(), lam)  # of an example in its target

        partner = jnp.flip(images, 0)
        blended = _blend(images, partner, lam)
        mixed = jnp.where(cuts, images, blended)
        place = (1,) * (images.ndim - 3) + (*inside.shape, 1)
        mixed = jnp.where(replaced.reshape(place), partner, mixed)
        labels = _blend(targets, jnp.flip(targets, 0), share)
        return jnp.where(on, mixed, images), jnp.where(on, labels, targets)

    return mix


def _blend(x: jax.Array, partner: jax.Array, share: jax.Array) -> jax.Array:
    share = share.astype(x.dtype)
    return share * x + (1 - share) * partner


def box(key: jax.Array, lam: jax.Array, height: int, width: int) -> jax.Array:
    """A box of sides sqrt(1 - lam) of the image's, bool [H, W], True within.

    Its middle is any pixel, as likely as any other, and what sticks out is cut off. As
    in timm half the side is a whole number of pixels, so sides are even.
    """
    across, down = jax.random.split(key)
    ratio = jnp.sqrt(1 - lam)

    def within(key, size):
        half = jnp.floor(ratio * size).astype(jnp.int32) // 2
        middle = jax.random.randint(key, (), 0, size)
        place = jnp.arange(size)
        return (place >= middle - half) & (place < middle + half)

    return within(down, height)[:, None] & within(across, width)[None, :]
