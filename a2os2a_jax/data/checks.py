"""Checks of examples where they enter: a layer of spikes would hide what is wrong.

NaN is below every threshold, so a neuron answers it with silence, and a model with a
confident class.
"""

import jax.numpy as jnp
import numpy as np

_BLOCK = 2**22  # numbers looked at together, which bounds the memory of a check


def check_finite(where: str, what: str, images: np.ndarray) -> None:
    """ValueError for the first example of `images` [N, ...] with NaN or infinity.

    where, what: names for the message, "a.npz" and "train_images".
    """
    step = max(1, _BLOCK * len(images) // max(1, images.size))
    for start in range(0, len(images), step):
        if (i := first_not_finite(images[start : start + step])) is not None:
            raise ValueError(
                f"{where}: got NaN or infinity in {what}[{start + i}], expected "
                "finite numbers of float32"
            )


def first_not_finite(images: np.ndarray) -> int | None:
    """Index of the first example of [N, ...] with NaN or infinity; None without any.

    Numbers count as the float32 that they become on their way to a model.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        return None
    with np.errstate(over="ignore"):
        finite = np.isfinite(images.astype(np.float32, copy=False))
    if finite.all():
        return None
    return int(finite.reshape(len(images), -1).all(1).argmin())


def check_labels(where: str, what: str, labels: np.ndarray, least: int = -1) -> None:
    """ValueError unless labels are integers [N] that fit int32.

    Args:
      where, what: names for the message, "a.npz" and "train_labels".
      least: smallest one; -1 is that of an example that could not be read.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise ValueError(
            f"{where}: got {what} {labels.dtype} {labels.shape}, expected integers [N]"
        )
    for i in (labels.argmin(), labels.argmax()) if labels.size else ():
        if not least <= labels[i] < 2**31:
            raise ValueError(
                f"{where}: got {what}[{i}] = {labels[i]}, expected a class, {least} to "
                "2^31 - 1"
            )
