"""Losses on class scores."""

import jax
import optax


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Per example, [B, C] and [B] -> [B]: -sum_c p_c log softmax(logits)_c.

    p is the one-hot label, with `smoothing` of it spread evenly over all classes.
    Source of the smoothing: Szegedy et al. 2016, arXiv:1512.00567.
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    if smoothing:
        targets = optax.smooth_labels(targets, smoothing)
    return optax.softmax_cross_entropy(logits, targets)
