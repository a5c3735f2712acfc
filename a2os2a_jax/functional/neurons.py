"""Spiking neurons as pure functions: `*_init` makes a state, `*_step` advances it.

Time is counted in steps, membranes in the units of the threshold. A step takes and
returns arrays of one shape [...] and knows neither batch nor time; it has the shape of
a `jax.lax.scan` body, (state, input) -> (state, spikes), and `unroll` is that scan.
Every state is a NamedTuple whose field `v` is the membrane after the reset.

The general leaky neuron is

    h[t] = v_reset + (1 - 1/tau) (v[t-1] - v_reset) + x[t]     (x[t]/tau: decay_input)
    s[t] = fire(h[t])
    v[t] = h[t] (1 - |s[t]|) + v_reset |s[t]|                  hard reset
         = h[t] - v_th s[t]                                    soft reset

with v[0] = v_reset. LIF fires Θ(h - v_th), the ternary neuron sign(h) [|h| >= v_th], IF
has no leak (1 - 1/tau -> 1), PLIF is LIF that learns w, with 1/tau = sigmoid(w).
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from a2os2a_jax.functional import checks, surrogate

ATAN = surrogate.atan()
MAX_UNROLL = 16  # timesteps up to which `unroll` leaves no loop for XLA to run


class IFState(NamedTuple):
    """v [...]: membrane potential after the reset, in the units of v_th."""

    v: jax.Array


class LIFState(NamedTuple):
    """v [...]: membrane potential after the reset, in the units of v_th."""

    v: jax.Array


class TernaryState(NamedTuple):
    """v [...]: membrane potential after the reset, in the units of v_th."""

    v: jax.Array


class GuoState(NamedTuple):
    """v [...]: membrane potential after the reset, in the units of the threshold."""

    v: jax.Array


class IntegerState(NamedTuple):
    """v [...]: membrane left over after firing, in spikes, decayed by beta."""

    v: jax.Array


def membrane_dtype(dtype) -> jnp.dtype:
    """Membranes are at least float32, whatever the compute dtype."""
    return jnp.promote_types(dtype, jnp.float32)


def _rest(shape, dtype, v_reset: float) -> jax.Array:
    return jnp.full(shape, v_reset, membrane_dtype(dtype))


def if_init(shape: tuple[int, ...], dtype=jnp.float32, *, v_reset: float = 0.0):
    """Rest for neurons of `shape` (no time axis): v = v_reset."""
    return IFState(_rest(shape, dtype, v_reset))


def lif_init(shape: tuple[int, ...], dtype=jnp.float32, *, v_reset: float = 0.0):
    """Rest for neurons of `shape` (no time axis): v = v_reset."""
    return LIFState(_rest(shape, dtype, v_reset))


def ternary_init(shape: tuple[int, ...], dtype=jnp.float32, *, v_reset: float = 0.0):
    """Rest for neurons of `shape` (no time axis): v = v_reset."""
    return TernaryState(_rest(shape, dtype, v_reset))


def guo_init(shape: tuple[int, ...], dtype=jnp.float32):
    """Rest for neurons of `shape` (no time axis): v = 0."""
    return GuoState(_rest(shape, dtype, 0.0))


def integer_init(shape: tuple[int, ...], dtype=jnp.float32):
    """Rest for neurons of `shape` (no time axis): v = 0."""
    return IntegerState(_rest(shape, dtype, 0.0))


def _input(name: str, state: NamedTuple, current: jax.Array) -> jax.Array:
    """`current` in the dtype of the membrane; ValueError for another shape."""
    current = jnp.asarray(current)
    if state.v.shape != current.shape:
        raise ValueError(
            f"{name}: state {state.v.shape} and input {current.shape} differ in shape"
        )
    return current.astype(jnp.result_type(state.v))


def check_options(name, *, v_th, v_reset, soft_reset, tau=2.0) -> None:
    """ValueError, in the name of `name`, for what no neuron can have.

    Arrays are looked at in every entry; values that are traced pass.
    """
    if checks.fails(operator.ge, tau, 1):
        raise ValueError(f"{name}: tau is {tau}, expected >= 1 (in timesteps)")
    if checks.fails(operator.gt, v_th, v_reset):
        raise ValueError(f"{name}: v_th is {v_th}, expected > v_reset = {v_reset}")
    if soft_reset and checks.fails(operator.eq, v_reset, 0):
        raise ValueError(f"{name}: v_reset is {v_reset}, expected 0 with soft_reset")


def charge(
    v: jax.Array,
    x: jax.Array,
    *,
    tau: float | jax.Array = 2.0,
    decay_input: bool = False,
    v_reset: float = 0.0,
    w: jax.Array | None = None,
) -> jax.Array:
    """The membrane h[t] before firing, from v[t-1] and x[t] (see the module's text).

    With `w` 1/tau is sigmoid(w), and tau is not looked at: the leak 1 - 1/tau is
    sigmoid(-w), which has a finite slope at every w, where 1/sigmoid(w) overflows.
    """
    if w is None:
        decay = 1 - 1 / tau
        drive = x / tau if decay_input else x
    else:
        decay = jax.nn.sigmoid(-w)
        drive = x * jax.nn.sigmoid(w) if decay_input else x
    if v_reset:
        return v_reset + decay * (v - v_reset) + drive
    return decay * v + drive


def _magnitude(s):
    """|s| with slope 0 at 0, as in the public code; jnp.abs has slope 1 there.

    No product, so that whoever follows intervals sees {0, 1}.
    """
    return jnp.where(s == 0, 0, jnp.abs(s))


def _reset(h, s, fired, *, v_th, v_reset, soft_reset, detach_reset):
    """v[t]; detached by selects, which no gradient enters and which never multiply."""
    if detach_reset:
        if soft_reset:
            return h - jnp.where(fired > 0, jnp.where(s > 0, v_th, -v_th), 0)
        return jnp.where(fired > 0, v_reset, h)
    if soft_reset:
        return h - v_th * s
    v = h * (1 - fired)
    return v + v_reset * fired if v_reset else v


def if_step(
    state: IFState,
    current: jax.Array,
    *,
    v_th: float = 1.0,
    v_reset: float = 0.0,
    soft_reset: bool = False,
    detach_reset: bool = True,
    spike_fn: surrogate.SpikeFn = ATAN,
) -> tuple[IFState, jax.Array]:
    """One timestep of integrate-and-fire: LIF without a leak.

        h[t] = v[t-1] + x[t],   s[t] = Θ(h[t] - v_th),   reset as `lif_step`

    Args, Returns, Raises: as `lif_step`.
    """
    x = _input("if_step", state, current)
    how = dict(v_th=v_th, v_reset=v_reset, soft_reset=soft_reset)
    check_options("if_step", **how)
    h = state.v + x
    s = spike_fn(h - v_th)
    return IFState(_reset(h, s, s, detach_reset=detach_reset, **how)), s


def lif_step(
    state: LIFState,
    current: jax.Array,
    *,
    tau: float | jax.Array = 2.0,
    v_th: float = 1.0,
    v_reset: float = 0.0,
    decay_input: bool = False,
    soft_reset: bool = False,
    detach_reset: bool = True,
    spike_fn: surrogate.SpikeFn = ATAN,
    w: jax.Array | None = None,
) -> tuple[LIFState, jax.Array]:
    """One timestep of leaky integrate-and-fire: charge, fire, reset.

        h[t] = (1 - 1/tau) v[t-1] + x[t]                     (x[t]/tau with decay_input)
        s[t] = Θ(h[t] - v_th)                                 fires at equality
        v[t] = h[t] (1 - s[t]) hard reset, or h[t] - v_th s[t] soft reset

    Args:
      state: v [...].
      current: [...] input x[t], of the shape of state.v.
      tau: time constant in timesteps, >= 1; a number, or an array broadcasting to
        [...].
      v_th: threshold, in the units of v; likewise.
      v_reset: where a hard reset leads and the leak tends to (see the module's text).
      decay_input: divide the input by tau, as SpikingJelly's LIF does.
      soft_reset: subtract v_th instead of returning to v_reset.
      detach_reset: let no gradient through s in the reset.
      spike_fn: see `surrogate`.
      w: of PLIF, in place of tau: 1/tau = sigmoid(w), a number or an array broadcasting
        to [...]; the parameter to learn, since its gradient is finite everywhere.
    Returns:
      (state, spikes), spikes [...] in {0, 1}, dtype of state.v. As a scan body:
        _, s = jax.lax.scan(lif_step, lif_init(x.shape[1:]), x)      # x [T, ...]
    Raises:
      ValueError: shapes differ, tau < 1, v_th <= v_reset, soft_reset with a v_reset.
    Source: Guo et al. 2025, arXiv:2503.00226; tau learnable: Fang et al. 2021,
      arXiv:2007.05785.
    """
    x = _input("lif_step", state, current)
    how = dict(v_th=v_th, v_reset=v_reset, soft_reset=soft_reset)
    check_options("lif_step", tau=tau, **how)
    h = charge(state.v, x, tau=tau, decay_input=decay_input, v_reset=v_reset, w=w)
    s = spike_fn(h - v_th)
    return LIFState(_reset(h, s, s, detach_reset=detach_reset, **how)), s


def ternary_step(
    state: TernaryState,
    current: jax.Array,
    *,
    tau: float | jax.Array = 2.0,
    v_th: float = 1.0,
    v_reset: float = 0.0,
    decay_input: bool = False,
    soft_reset: bool = False,
    detach_reset: bool = True,
    spike_fn: surrogate.SpikeFn = ATAN,
    w: jax.Array | None = None,
) -> tuple[TernaryState, jax.Array]:
    """One timestep of the ternary leaky neuron.

        h[t] charged as in `lif_step`
        s[t] = sign(h[t]) [|h[t]| >= v_th]      slope g(h - v_th) + g(-h - v_th)
        v[t] = v_reset where it fired, else h[t]; or h[t] - v_th s[t] soft reset

    Args, Raises: as `lif_step`; `spike_fn` is the binary function whose slope is g.
    Returns:
      (state, spikes), spikes [...] in {-1, 0, 1}.
    Source: Guo et al. 2025, arXiv:2503.00226, eq. 25-27.
    """
    x = _input("ternary_step", state, current)
    how = dict(v_th=v_th, v_reset=v_reset, soft_reset=soft_reset)
    check_options("ternary_step", tau=tau, **how)
    h = charge(state.v, x, tau=tau, decay_input=decay_input, v_reset=v_reset, w=w)
    s = surrogate.ternary(spike_fn, v_th)(h)
    fired = _magnitude(s)
    return TernaryState(_reset(h, s, fired, detach_reset=detach_reset, **how)), s


@functools.cache
def _guo(form: str, threshold: float) -> surrogate.SpikeFn:
    def ternary(u):
        return jnp.sign(u) * (jnp.abs(u) >= threshold)

    def binary(u):
        return (u > threshold).astype(u.dtype)

    if form == "ternary":
        low, step = -1, ternary
    elif form == "binary":
        low, step = 0, binary
    else:
        raise ValueError(f"guo_step: form is {form!r}, expected 'binary' or 'ternary'")
    limited = surrogate.clamp(low, 1)
    return surrogate.from_curve(lambda u: limited(u / (2 * threshold)), step)


def guo_step(
    state: GuoState,
    current: jax.Array,
    *,
    form: str = "binary",
    decay: float = 0.25,
    threshold: float = 0.5,
) -> tuple[GuoState, jax.Array]:
    """One timestep of the first author's earlier neuron, ternary or binary.

        u[t] = decay v[t-1] + x[t]
        s[t] = sign(u[t]) [|u[t]| >= 1/2]   ternary, slope of u limited to [-1, 1]
             = [u[t] > 1/2]                 binary, slope of u limited to [0, 1]
        v[t] = u[t] (1 - |s[t]|)            hard reset, inside the gradient

    The slope is 1 at the edges too. The ternary form fires at equality, the binary form
    does not. The trainable amplitude of the original is a scale of the next weights.
    Another threshold is another unit of u: 2 threshold in place of 1 throughout.

    Args:
      state: v [...].
      current: [...] input x[t], of the shape of state.v.
      form: "binary" or "ternary".
      decay: what is left of the membrane after a step, 0 to 1.
      threshold: > 0, in the units of u.
    Returns:
      (state, spikes), spikes [...] in {0, 1} or {-1, 0, 1}.
    Raises:
      ValueError: shapes differ, an unknown form, threshold <= 0.
    Source: Guo et al., Ternary Spike, AAAI 2024, arXiv:2312.06372, public code.
    """
    x, threshold = _input("guo_step", state, current), checks.plain(threshold)
    if not isinstance(threshold, int | float) or not threshold > 0:
        raise ValueError(f"guo_step: threshold is {threshold}, expected a number > 0")
    spike = _guo(form, threshold)
    u = decay * state.v + x
    s = spike(u)
    fired = _magnitude(s) if form == "ternary" else s
    return GuoState(u * (1 - fired)), s


@functools.cache
def _rounded(levels: int) -> surrogate.SpikeFn:
    return surrogate.from_curve(
        surrogate.clamp(0, levels), lambda u: jnp.clip(jnp.round(u), 0, levels)
    )


def integer_step(
    state: IntegerState,
    current: jax.Array,
    *,
    levels: int = 4,
    beta: float = 0.25,
    normalise: bool = False,
    detach_reset: bool = False,
) -> tuple[IntegerState, jax.Array]:
    """One timestep of the integer (multi-level) neuron.

        u[t] = v[t-1] + x[t]
        s[t] = clamp(round(u[t]), 0, levels)     slope of clamp(u, 0, levels)
        v[t] = beta (u[t] - s[t])

    `spikes.expand` turns s into `levels` binary slots with the same sum.

    Args:
      state: v [...], the rest carried over, already multiplied by beta.
      current: [...] input x[t], of the shape of state.v.
      levels: D >= 1, the largest spike count of a step.
      beta: leak, 0 to 1.
      normalise: return s / levels, in [0, 1].
      detach_reset: let no gradient through s in the reset.
    Returns:
      (state, spikes), spikes [...] in {0, 1, ..., levels}, halves rounded to even.
    Raises:
      ValueError: shapes differ, levels < 1.
    Source: Yao et al. (E-SpikeFormer), arXiv:2411.16061; Luo et al. (SpikeYOLO),
      arXiv:2407.20708.
    """
    x, levels = _input("integer_step", state, current), checks.plain(levels)
    if not isinstance(levels, int) or levels < 1:
        raise ValueError(f"integer_step: levels is {levels}, expected an integer >= 1")
    u = state.v + x
    s = _rounded(levels)(u)
    left = u - (jax.lax.stop_gradient(s) if detach_reset else s)
    return IntegerState(beta * left), s / levels if normalise else s


def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), the key of A2OS2A: not spiking, without state; slope 0 at 0."""
    return jax.nn.relu(x)


def unroll(
    step: Callable[[Any, jax.Array], tuple[Any, jax.Array]],
    init: Callable[..., Any],
    x: jax.Array,
    *,
    axis: int = 0,
    state: Any = None,
    return_state: bool = False,
):
    """Run a neuron over the time axis of x with `jax.lax.scan`.

    One step at a time, all at once or in chunks give the same spikes. Up to MAX_UNROLL
    steps the loop is unrolled, and XLA fuses over time. Call it under `jax.jit`, as any
    scan: outside, the body is compiled anew at every call.

    Args:
      step: (state, x[t]) -> (state, spikes), options bound with functools.partial.
      init: (shape, dtype) -> state at rest, used when `state` is None.
      x: input with time on `axis`, an array or nested lists; T = 0 is allowed and
        returns the state untouched.
      axis: the time axis.
      state: where an earlier call left off (its returned state).
      return_state: also hand back the state after the last step.
    Returns:
      spikes, shape and dtype of x; or (spikes, state).
    Raises:
      ValueError: x has no axis `axis`.
    """
    x = jnp.asarray(x)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"unroll: x {x.shape} has no axis {axis}")
    xs = jnp.moveaxis(x, axis, 0)
    if state is None:
        state = init(xs.shape[1:], x.dtype)

    def body(carry, x_t):
        carry, s = step(carry, x_t)
        return carry, s.astype(x.dtype)

    length = xs.shape[0]
    count = length if 0 < length <= MAX_UNROLL else 1
    state, s = jax.lax.scan(body, state, xs, unroll=count)
    s = jnp.moveaxis(s, 0, axis)
    return (s, state) if return_state else s
