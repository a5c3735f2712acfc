"""Neurons as Flax modules: time, parameters and names; the equations are on floor 0.

All map [B, T, ...] to [B, T, ...] over the time axis 1, and all

- sow their spikes as "out" in the collection "spikes", if the caller makes it mutable;
- sow the distance of the membrane to the threshold, before the reset, in "potentials",
  likewise ([B, T, ...], in the units of the threshold);
- keep their state in the collection "membrane" between calls, if it is mutable: that is
  how a model streams one frame at a time. Otherwise every call starts from rest.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from a2os2a_jax.functional import checks, neurons, spikes, surrogate


class Neuron(nn.Module):
    """What all neurons share. A subclass says what it is in `dynamics`.

    dtype: of the spikes handed on; None keeps the input's. Membranes stay >= float32.
    """

    dtype: Any = None
    kind = "binary"

    def dynamics(self):
        """(init, step, distance); distance(v, x): to the threshold, before reset."""
        raise TypeError("Neuron has no dynamics: use LIF, IF, Ternary, Guo or Integer")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.asarray(x)
        init, step, distance = self.dynamics()
        streaming = (
            self.is_mutable_collection("membrane") and not self.is_initializing()
        )
        probing = (
            self.is_mutable_collection("potentials") and not self.is_initializing()
        )
        start = (x.shape[0], *x.shape[2:])
        if streaming:
            carry = self.variable("membrane", "state", init, start, x.dtype)
        else:
            carry = None
        first = carry.value if streaming else None
        if probing:
            self.sow("potentials", "out", _distances(step, init, distance, x, first))
        s, last = neurons.unroll(step, init, x, axis=1, state=first, return_state=True)
        if streaming:
            carry.value = last
        s = s.astype(self.dtype or x.dtype)
        if not self.is_initializing():
            self.sow("spikes", "out", s)
        return spikes.tag(s, self.kind)


def _distances(step, init, distance, x, state):
    """[B, T, ...]: `distance` at every step, by a scan of its own."""

    def body(state, x_t):
        here = distance(state.v, x_t.astype(state.v.dtype))
        return step(state, x_t)[0], here

    xs = jnp.moveaxis(x, 1, 0)
    state = init(xs.shape[1:], x.dtype) if state is None else state
    return jnp.moveaxis(jax.lax.scan(body, state, xs)[1], 0, 1)


class IF(Neuron):
    """`neurons.if_step`, in {0, 1}."""

    v_th: float = 1.0
    v_reset: float = 0.0
    soft_reset: bool = False
    detach_reset: bool = True
    surrogate: str = "atan"

    def dynamics(self):
        step = functools.partial(
            neurons.if_step,
            v_th=self.v_th,
            v_reset=self.v_reset,
            soft_reset=self.soft_reset,
            detach_reset=self.detach_reset,
            spike_fn=surrogate.by_name(self.surrogate),
        )
        init = functools.partial(neurons.if_init, v_reset=self.v_reset)
        return init, step, lambda v, x: v + x - self.v_th


class LIF(Neuron):
    """`neurons.lif_step`, in {0, 1}; PLIF with learn_tau: 1/tau = sigmoid(w), one w."""

    tau: float = 2.0
    v_th: float = 1.0
    v_reset: float = 0.0
    decay_input: bool = False
    soft_reset: bool = False
    detach_reset: bool = True
    surrogate: str = "atan"
    learn_tau: bool = False

    _init, _step = staticmethod(neurons.lif_init), staticmethod(neurons.lif_step)

    def dynamics(self):
        w = None
        if self.learn_tau:
            if not self.tau > 1:
                raise ValueError(f"learn_tau: tau starts at {self.tau}, expected > 1")
            start = nn.initializers.constant(-math.log(self.tau - 1))
            dtype = neurons.membrane_dtype(self.dtype or jnp.float32)
            w = self.param("w", start, (), dtype)
        how = dict(tau=self.tau, w=w, decay_input=self.decay_input)
        how |= dict(v_reset=self.v_reset)
        step = functools.partial(
            self._step,
            v_th=self.v_th,
            soft_reset=self.soft_reset,
            detach_reset=self.detach_reset,
            spike_fn=surrogate.by_name(self.surrogate),
            **how,
        )
        init = functools.partial(self._init, v_reset=self.v_reset)
        return init, step, lambda v, x: self.distance(neurons.charge(v, x, **how))

    def distance(self, h: jax.Array) -> jax.Array:
        return h - self.v_th


class Ternary(LIF):
    """`neurons.ternary_step`, in {-1, 0, 1}; fields as `LIF`."""

    kind = "ternary"
    _init, _step = (
        staticmethod(neurons.ternary_init),
        staticmethod(neurons.ternary_step),
    )

    def distance(self, h: jax.Array) -> jax.Array:
        return jnp.abs(h) - self.v_th


class Guo(Neuron):
    """`neurons.guo_step`, form "binary" {0, 1} or "ternary" {-1, 0, 1}."""

    form: str = "binary"
    decay: float = 0.25
    threshold: float = 0.5

    @property
    def kind(self):
        return self.form

    def dynamics(self):
        how = dict(form=self.form, decay=self.decay, threshold=self.threshold)
        step = functools.partial(neurons.guo_step, **how)
        size = jnp.abs if self.form == "ternary" else (lambda u: u)

        def distance(v, x):
            return size(self.decay * v + x) - self.threshold

        return neurons.guo_init, step, distance


class Integer(Neuron):
    """`neurons.integer_step`, in {0, ..., levels}, or divided by levels."""

    levels: int = 4
    beta: float = 0.25
    normalise: bool = False
    kind = "integer"

    def dynamics(self):
        how = dict(levels=self.levels, beta=self.beta, normalise=self.normalise)
        step = functools.partial(neurons.integer_step, **how)
        return neurons.integer_init, step, lambda v, x: v + x - 0.5


DEFAULTS = {
    "rule": "paper",
    "tau": 2.0,
    "v_th": 1.0,
    "v_reset": 0.0,
    "decay_input": False,
    "soft_reset": False,
    "detach_reset": True,
    "learn_tau": False,
    "surrogate": "atan",
}
RULES = ("paper", "guo")


def resolve(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Neuron options of a model or config, complete: DEFAULTS, then what is given.

    Raises:
      ValueError: an unknown option, rule or surrogate, one that the rule has not, or
        a value of the wrong type or range.
    """
    options = dict(options or {})
    if unknown := sorted(set(options) - set(DEFAULTS)):
        raise ValueError(
            f"neuron: got {unknown}, expected options in {sorted(DEFAULTS)}"
        )
    given = {key: checks.plain(value) for key, value in options.items()}
    full = DEFAULTS | {k: v for k, v in given.items() if v is not None}
    if full["rule"] not in RULES:
        raise ValueError(f"neuron.rule: got {full['rule']!r}, expected one of {RULES}")
    if full["rule"] == "guo":
        fixed = {k: v for k, v in full.items() if k != "rule" and v != DEFAULTS[k]}
        if fixed:
            raise ValueError(
                f"neuron: got {fixed}, expected the defaults with the guo rule, which "
                "fixes leak 1/4, threshold 1/2 and surrogate"
            )
    for key, default in DEFAULTS.items():
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(full[key], kinds) or isinstance(full[key], bool) != (
            isinstance(default, bool)
        ):
            what = "a number" if isinstance(default, float) else kinds.__name__
            raise ValueError(f"neuron.{key}: got {full[key]!r}, expected {what}")
    surrogate.by_name(full["surrogate"])
    how = {key: full[key] for key in ("tau", "v_th", "v_reset", "soft_reset")}
    neurons.check_options("neuron", **how)
    return full


def make(
    form: str,
    options: Mapping[str, Any] | None,
    *,
    dtype=None,
    name=None,
    unit: float = 1.0,
    **own,
):
    """The neuron of `form` ("binary", "ternary" or "integer") that the options name.

    `own` overrides the options for this one neuron (the threshold of VSSA's); the guo
    rule has its threshold fixed and passes over it. An integer neuron has none of the
    options, only its own `levels`, by which its spikes are divided.
    unit: v_th and v_reset (or guo's threshold) times this, for an input that is so many
    times what the options mean.
    """
    if form == "integer":
        return Integer(normalise=True, dtype=dtype, name=name, **own)
    options = resolve(options)
    rule = options.pop("rule")
    if rule == "guo":
        return Guo(form=form, threshold=0.5 * unit, dtype=dtype, name=name)
    cls = {"binary": LIF, "ternary": Ternary}[form]
    full = options | own
    full |= {key: full[key] * unit for key in ("v_th", "v_reset")}
    return cls(**full, dtype=dtype, name=name)
