"""Where the windows of a convolution lie on its image."""

import numpy as np


def taps(eqn) -> list[list[int]]:
    """For each spatial axis of a convolution: taps inside the image, per output."""
    return [inside.sum(1).tolist() for _, inside in _positions(eqn)]


def reach(eqn) -> list[list[int]]:
    """For each spatial axis of a convolution: outputs and taps that read an input."""
    found = []
    for spatial, (at, inside) in enumerate(_positions(eqn)):
        i = eqn.params["dimension_numbers"].lhs_spec[2 + spatial]
        length = eqn.invars[0].aval.shape[i]
        found.append(np.bincount(at[inside], minlength=length).tolist())
    return found


def _positions(eqn):
    """For each spatial axis (input position, is it in the image), [outputs, taps]."""
    p, (lhs, rhs) = eqn.params, (eqn.invars[0].aval.shape, eqn.invars[1].aval.shape)
    numbers, out = p["dimension_numbers"], eqn.outvars[0].aval.shape
    for axis, (i, k, o) in enumerate(
        zip(
            numbers.lhs_spec[2:],
            numbers.rhs_spec[2:],
            numbers.out_spec[2:],
            strict=True,
        )
    ):
        at = (
            np.arange(out[o])[:, None] * p["window_strides"][axis]
            + np.arange(rhs[k])[None] * p["rhs_dilation"][axis]
            - p["padding"][axis][0]
        )
        step = p["lhs_dilation"][axis]
        inside = (at >= 0) & (at <= (lhs[i] - 1) * step) & (at % step == 0)
        yield at // step, inside
