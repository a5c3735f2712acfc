"""Spikes whose gradient is that of a named curve. Needs jax alone.

A spike function is stated once, as a step and a curve: it returns the step's value, and
jax differentiates the curve, in forward and in reverse mode. Document and derivative
cannot disagree. At a kink of a piecewise curve the slope is that of the branch which
the docstring names.

All take x = membrane - threshold, in the units of the membrane, elementwise, any shape.
"""

import functools
import inspect
import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp

from a2os2a_jax.functional import checks

SpikeFn = Callable[[jax.Array], jax.Array]


def heaviside(x: jax.Array) -> jax.Array:
    """1 where x >= 0, else 0, in the dtype of x: a neuron fires at equality."""
    x = jnp.asarray(x)  # jax.grad(spike)(0.5)
    return (x >= 0).astype(x.dtype)


def from_curve(curve: SpikeFn, step: SpikeFn = heaviside) -> SpikeFn:
    """A spike function: `step(x)` forward, d curve/dx backward and in forward mode.

    Args:
      curve: smooth (or piecewise smooth) function that stands in for the step.
      step: piecewise constant function; the Heaviside step by default.
    Returns:
      spike, with the attribute `spike.curve` for plots and tests.
    """

    @jax.custom_jvp
    def spike(x: jax.Array) -> jax.Array:
        return step(x)

    @spike.defjvp
    def _(primals, tangents):
        _, slope = jax.jvp(curve, primals, tangents)
        return spike(*primals), slope

    spike.curve = curve
    return spike


def _positive(name: str, value: float) -> None:
    if checks.fails(operator.gt, value, 0):
        raise ValueError(f"{name}: got {value}, expected a number > 0")


def _cached(make: Callable[..., SpikeFn]) -> Callable[..., SpikeFn]:
    """Equal settings, however spelled, give the same object: hence no retrace."""
    signature = inspect.signature(make)
    made = {}  # 2 and 2.0 are one key here; functools.cache takes them for two

    @functools.wraps(make)
    def factory(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        key = tuple(map(checks.plain, bound.args))
        if key not in made:
            made[key] = make(*key)
        return made[key]

    return factory


@_cached
def atan(alpha: float = 2.0) -> SpikeFn:
    """arctan(pi/2 alpha x) / pi + 1/2: slope alpha/2 at threshold.

    Source: Fang et al. 2021, arXiv:2007.05785; default of the paper's equations here.
    """
    _positive("atan(alpha)", alpha)
    return from_curve(lambda x: jnp.arctan(math.pi / 2 * alpha * x) / math.pi + 0.5)


@_cached
def sigmoid(alpha: float = 4.0) -> SpikeFn:
    """1 / (1 + exp(-alpha x)): slope alpha/4 at threshold.

    Default of the Spikformer family, which takes its library's (SpikingJelly) default.
    """
    _positive("sigmoid(alpha)", alpha)
    return from_curve(lambda x: jax.nn.sigmoid(alpha * x))


@_cached
def rectangle(width: float = 1.0) -> SpikeFn:
    """Ramp from 0 to 1: slope 1/width where |x| < width/2, else 0.

    Source: Wu et al. 2018, arXiv:1706.02609.
    """
    _positive("rectangle(width)", width)

    def curve(x):
        flat = jax.lax.stop_gradient(heaviside(x))
        return jnp.where(jnp.abs(x) < width / 2, x / width + 0.5, flat)

    return from_curve(curve)


@_cached
def triangle(width: float = 1.0) -> SpikeFn:
    """Two parabolas: slope (1 - |x|/width) / width where |x| <= width, else 0.

    `width` is half of the foot. SpikingJelly's PiecewiseQuadratic(alpha) is
    triangle(1/alpha). Source: Bellec et al. 2018, arXiv:1803.09574.
    """
    _positive("triangle(width)", width)

    def curve(x):
        z = x / width
        ramp = z - 0.5 * z * jnp.abs(z) + 0.5
        return jnp.where(jnp.abs(z) <= 1, ramp, jax.lax.stop_gradient(heaviside(x)))

    return from_curve(curve)


def clamp(lo: float, hi: float) -> SpikeFn:
    """x limited to [lo, hi], slope 1 where lo <= x <= hi (jnp.clip has 1/2 at both)."""
    return lambda x: jnp.where(x < lo, lo, jnp.where(x > hi, hi, x))


@_cached
def straight_through(lo: float = -0.5, hi: float = 0.5) -> SpikeFn:
    """x limited to [lo, hi]: slope 1 where lo <= x <= hi, else 0 (clipped identity).

    Source: Bengio et al. 2013, arXiv:1308.3432.
    """
    if not lo < hi:
        raise ValueError(f"straight_through(lo, hi): got {lo}, {hi}, expected lo < hi")
    return from_curve(clamp(lo, hi))


def ternary(spike_fn: SpikeFn, v_th: float = 1.0) -> SpikeFn:
    """sign(u) [|u| >= v_th] of a membrane u, from a binary spike function.

        s(u) = spike(u - v_th) - spike(-u - v_th)       in {-1, 0, 1}
        slope g(u - v_th) + g(-u - v_th), with g the slope of spike's curve

    Args:
      spike_fn: a function of this module.
      v_th: threshold > 0, in the units of u.
    Returns:
      A function of the membrane itself (not of the distance to a threshold).
    Source: Guo et al. 2025, arXiv:2503.00226, eq. 25-27.
    """
    _positive("ternary(v_th)", v_th)

    def spike(u: jax.Array) -> jax.Array:
        return spike_fn(u - v_th) - spike_fn(-u - v_th)

    spike.curve = lambda u: spike_fn.curve(u - v_th) - spike_fn.curve(-u - v_th)
    return spike


NAMED: dict[str, Callable[..., SpikeFn]] = {
    "atan": atan,
    "sigmoid": sigmoid,
    "rectangle": rectangle,
    "triangle": triangle,
    "straight_through": straight_through,
}


def by_name(name: str) -> SpikeFn:
    """A spike function from a config's text: "atan", or with its numbers "atan(5)"."""
    stem, bracket, rest = name.partition("(")
    try:
        numbers = [float(n) for n in rest.removesuffix(")").split(",") if n.strip()]
        if bool(bracket) != name.endswith(")"):
            raise ValueError
        return NAMED[stem.strip()](*numbers)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"surrogate: got {name!r}, expected one of {', '.join(NAMED)}, with "
            "positive numbers in brackets if wanted, as in 'atan(2)'"
        ) from error
