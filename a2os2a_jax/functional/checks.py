"""Small checks of numbers that a user hands over: Python's, numpy's or jax's."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def fails(test: Callable[[Any, Any], Any], value: Any, limit: Any) -> bool:
    """True if test(value, limit) is false in an entry, or no number is there.

    NaN fails every test. Values that are traced have no answer yet: they pass, and
    leave nothing in a jaxpr.
    """
    if any(isinstance(x, jax.core.Tracer) for x in (value, limit)):
        return False
    try:
        return not np.all(test(np.asarray(value), np.asarray(limit)))
    except TypeError:  # None, text
        return True


def plain(value: Any) -> Any:
    """Scalars of numpy or jax as Python's int, float or bool; other values as given.

    Scalars are arrays without axes, too, and those in a tuple or list. A traced one
    stays what it is.
    """
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value))
    if isinstance(value, jax.core.Tracer):
        return value
    is_scalar = (
        isinstance(value, np.generic | np.ndarray | jax.Array) and not value.ndim
    )
    return value.item() if is_scalar and value.dtype.kind in "biufV" else value
