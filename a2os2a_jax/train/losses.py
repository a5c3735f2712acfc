"""Losses on class scores, per example."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Loss(NamedTuple):
    """value(scores, labels) -> [B]; scores [B, C], or [B, T, C] if per_step.

    labels: classes [B], integers, or distributions over classes [B, C], floats.
    """

    per_step: bool
    value: Callable[[jax.Array, jax.Array], jax.Array]


LOSSES = ("cross_entropy", "tet")


def make(name: str, *, smoothing: float = 0.0, mse: float = 0.05) -> Loss:
    """The loss of this name: of the scores averaged over time, or of every step.

    Args:
      smoothing: of the labels, for both.
      mse: lambda of `tet`.
    Raises:
      ValueError: an unknown name, or lambda outside [0, 1].
    """
    if name not in LOSSES:
        raise ValueError(f"train.loss: got {name!r}, expected {' or '.join(LOSSES)}")
    if not 0 <= mse <= 1:
        raise ValueError(f"train.tet_mse: got {mse}, expected 0 to 1")
    if name == "tet":
        return Loss(True, lambda scores, y: tet(scores, y, smoothing, mse))
    return Loss(False, lambda scores, y: cross_entropy(scores, y, smoothing))


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Per example, [B, C] and [B] or [B, C] -> [B]: -sum_c p_c log softmax(logits)_c.

    p is the one-hot label, or the distribution that `labels` are if they have a class
    axis, with `smoothing` of it spread evenly over all classes.
    Source of the smoothing: Szegedy et al. 2016, arXiv:1512.00567.
    """
    if labels.ndim == logits.ndim:
        if labels.shape[-1] != logits.shape[-1]:
            raise ValueError(
                f"cross_entropy: got labels {labels.shape} for scores {logits.shape}, "
                "expected as many classes"
            )
        targets = labels.astype(logits.dtype)
    else:
        targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    if smoothing:
        targets = optax.smooth_labels(targets, smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def tet(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0, mse: float = 0.05
) -> jax.Array:
    """Every step has to know the answer, [B, T, C] and [B] or [B, C] -> [B].

        mean over t of (1 - mse) cross_entropy(logits_t) + mse mean_c (logits_tc - 1)^2

    The target 1 of the second term is the neurons' threshold.
    Source: Deng et al. 2022 (temporal efficient training), arXiv:2202.11946.
    """
    entropy = cross_entropy(logits, labels[:, None], smoothing)
    distance = jnp.square(logits - 1).mean(-1)
    return ((1 - mse) * entropy + mse * distance).mean(1)
