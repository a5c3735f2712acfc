"""Modules add time, names and collections to the steps of floor 0; the equations are
written out once more here, in numpy, to have something to compare with."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.functional import neurons, surrogate
from a2os2a_jax.modules import neuron


def heaviside(u):
    return (u >= 0).astype(float)


def leaky(tau=2.0, v_th=1.0, rest=0.0, decay=False, ternary=False, soft=False):
    """(charge, fire, reset, distance, rest) in numpy."""

    def charge(v, x):
        return rest + (1 - 1 / tau) * (v - rest) + (x / tau if decay else x)

    def fire(h):
        return heaviside(h - v_th) - (heaviside(-h - v_th) if ternary else 0)

    def reset(h, s):
        return h - v_th * s if soft else np.where(s != 0, rest, h)

    return charge, fire, reset, lambda h: (abs(h) if ternary else h) - v_th, rest


def guo(ternary):
    def fire(u):
        return np.sign(u) * (abs(u) >= 0.5) if ternary else (u > 0.5).astype(float)

    return (
        lambda v, x: 0.25 * v + x,
        fire,
        lambda u, s: np.where(s != 0, 0, u),
        lambda u: (abs(u) if ternary else u) - 0.5,
        0.0,
    )


def integer(levels, beta, divide=1):
    def fire(u):
        return np.clip(np.round(u), 0, levels) / divide

    return (
        lambda v, x: v + x,
        fire,
        lambda u, s: beta * (u - s * divide),
        lambda u: u - 0.5,
        0.0,
    )


BACK = dict(v_reset=-0.25)
CASES = {  # module, its equations
    "if": (neuron.IF(), leaky(tau=np.inf)),
    "if soft": (
        neuron.IF(v_th=0.5, soft_reset=True),
        leaky(tau=np.inf, v_th=0.5, soft=True),
    ),
    "if to -1/4": (neuron.IF(**BACK), leaky(tau=np.inf, rest=-0.25)),
    "lif": (neuron.LIF(), leaky()),
    "lif decayed to -1/4": (
        neuron.LIF(tau=4.0, v_th=0.25, decay_input=True, **BACK),
        leaky(tau=4.0, v_th=0.25, decay=True, rest=-0.25),
    ),
    "lif soft": (neuron.LIF(soft_reset=True), leaky(soft=True)),
    "plif": (neuron.LIF(tau=4.0, learn_tau=True, dtype=jnp.float64), leaky(tau=4.0)),
    "ternary": (neuron.Ternary(), leaky(ternary=True)),
    "ternary soft": (
        neuron.Ternary(v_th=0.5, soft_reset=True),
        leaky(v_th=0.5, ternary=True, soft=True),
    ),
    "guo": (neuron.Guo(), guo(False)),
    "guo ternary": (neuron.Guo(form="ternary"), guo(True)),
    "integer": (neuron.Integer(), integer(4, 0.25)),
    "integer normalised": (
        neuron.Integer(levels=2, beta=0.5, normalise=True),
        integer(2, 0.5, divide=2),
    ),
}
X = np.random.default_rng(0).normal(0.25, 1.0, (3, 6, 4, 5))  # [B, T, ...]


def by_hand(equations, x):
    """(spikes, distances from the threshold before the reset), [B, T, ...]."""
    charge, fire, reset, distance, rest = equations
    v, spikes, distances = np.full(x[:, 0].shape, rest), [], []
    for t in range(x.shape[1]):
        h = charge(v, x[:, t])
        s = fire(h)
        v = reset(h, s)
        spikes.append(s)
        distances.append(distance(h))
    return np.stack(spikes, 1), np.stack(distances, 1)


@pytest.fixture(scope="module")
def results():
    """results(name) -> (variables, [(spikes, kept), ...]) of `X`, compiled once: of the
    whole, of two steps, of none, of the rest."""
    made = {}

    def get(name):
        if name not in made:
            module, x = CASES[name][0], jnp.asarray(X)
            variables = module.init(jax.random.key(0), x)

            @jax.jit
            def run(x):
                whole = module.apply(variables, x, mutable=["spikes", "potentials"])
                kept, parts = {}, []
                for part in (x[:, :2], x[:, 2:2], x[:, 2:]):
                    s, kept = module.apply(
                        variables | kept, part, mutable=["membrane", "potentials"]
                    )
                    parts.append((s, kept))
                    kept = {"membrane": kept["membrane"]}
                return [whole, *parts]

            made[name] = variables, jax.device_get(run(x))
        return made[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_spikes_and_potentials_are_those_of_the_equations(x64, results, name):
    s, distances = by_hand(CASES[name][1], X)
    assert 0.02 < np.mean(s != 0) < 0.7
    _, ((got, kept), *_) = results(name)
    np.testing.assert_array_equal(got, s)
    assert set(kept) == {"spikes", "potentials"}
    np.testing.assert_array_equal(kept["spikes"]["out"][0], s)
    np.testing.assert_allclose(kept["potentials"]["out"][0], distances, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_state_is_carried_between_calls_while_it_is_mutable(x64, results, name):
    _, ((want, whole), *parts) = results(name)
    got = np.concatenate([s for s, _ in parts], axis=1)
    np.testing.assert_array_equal(got, want)
    potentials = [kept["potentials"]["out"][0] for _, kept in parts]
    np.testing.assert_allclose(
        np.concatenate(potentials, axis=1), whole["potentials"]["out"][0], atol=1e-12
    )
    first, nothing, _ = (kept["membrane"]["state"] for _, kept in parts)
    chex.assert_trees_all_equal(nothing, first)  # of no steps


@pytest.mark.parametrize("name", CASES)
def test_a_new_neuron_has_no_state_and_parameters_only_for_tau(x64, results, name):
    variables, _ = results(name)
    if name != "plif":
        assert variables == {}
        return
    assert set(variables) == {"params"} and set(variables["params"]) == {"w"}
    np.testing.assert_allclose(variables["params"]["w"], -math.log(3))


def test_without_a_mutable_membrane_a_call_starts_from_rest(x64):
    module, x = neuron.LIF(), jnp.asarray(X)
    first, kept = module.apply({}, x, mutable=["membrane"])
    after, _ = module.apply(kept, x, mutable=["membrane"])
    assert (after != first).any()
    np.testing.assert_array_equal(module.apply(kept, x), first)
    np.testing.assert_array_equal(module.apply({}, x), first)


def test_modules_are_unroll_over_axis_1(x64):
    """In gradients, too."""
    x = jnp.asarray(X)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=X.shape))
    pairs = {
        "if": (neuron.IF(), neurons.if_init, neurons.if_step),
        "lif": (neuron.LIF(), neurons.lif_init, neurons.lif_step),
        "ternary": (neuron.Ternary(), neurons.ternary_init, neurons.ternary_step),
        "guo": (neuron.Guo(), neurons.guo_init, neurons.guo_step),
        "integer": (neuron.Integer(), neurons.integer_init, neurons.integer_step),
    }

    @jax.jit
    def both(x):
        def run(f):
            return jax.vjp(f, x)[1](weights)[0]

        return {
            name: (
                run(lambda x, module=module: module.apply({}, x)),
                run(lambda x, i=init, s=step: neurons.unroll(s, i, x, axis=1)),
            )
            for name, (module, init, step) in pairs.items()
        }

    for name, (got, want) in both(x).items():
        np.testing.assert_allclose(got, want, atol=1e-12, err_msg=name)
        assert np.abs(want).max() > 0.1, name


def test_tau_is_learnt(x64):
    """The gradient of w through a LIF of tau = 1 / sigmoid(w)."""
    module, x = neuron.LIF(tau=3.0, learn_tau=True, decay_input=True), jnp.asarray(X)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=X.shape))

    @jax.jit
    def ours(variables):
        return jax.grad(lambda v: (module.apply(v, x) * weights).sum())(variables)

    @jax.jit
    def theirs(w):
        def loss(w):
            def step(state, x_t):
                tau = 1 / jax.nn.sigmoid(w)
                return neurons.lif_step(state, x_t, tau=tau, decay_input=True)

            s = neurons.unroll(step, neurons.lif_init, x, axis=1)
            return (s * weights).sum()

        return jax.grad(loss)(w)

    w = jnp.asarray(-math.log(2.0))
    got = ours({"params": {"w": w}})["params"]["w"]
    assert abs(got) > 0.1
    np.testing.assert_allclose(got, theirs(w), rtol=1e-10)


@pytest.mark.parametrize("module", [neuron.LIF, neuron.Ternary])
def test_the_gradient_of_a_long_time_constant_is_finite(module):
    """In float32, where 1/sigmoid(w) squared is infinite from w = -44 on."""
    module, x = module(learn_tau=True), jnp.asarray(X, jnp.float32)

    @jax.jit
    @jax.vmap
    @jax.grad
    def slope(w):
        return (module.apply({"params": {"w": w}}, x) * jnp.cos(x)).sum()

    assert np.isfinite(slope(jnp.array([-100.0, -44.0, 0.0, 44.0, 100.0]))).all()


def test_options_reach_the_step(x64):
    """Surrogate and detach_reset change gradients and nothing else."""
    x = jnp.asarray(X)
    modules = [
        neuron.LIF(),
        neuron.LIF(surrogate="sigmoid(4)"),
        neuron.LIF(detach_reset=False),
        neuron.LIF(surrogate="atan(2)"),
    ]

    @jax.jit
    def run(x):
        results = [jax.vjp(lambda x, m=m: m.apply({}, x), x) for m in modules]
        return [(s, pull(jnp.ones_like(s))[0]) for s, pull in results]

    (s, g), (s1, g1), (s2, g2), (s3, g3) = run(x)
    for other in (s1, s2, s3):
        np.testing.assert_array_equal(other, s)
    np.testing.assert_allclose(g3, g, rtol=1e-12)
    assert np.abs(g1 - g).max() > 1e-2 and np.abs(g2 - g).max() > 1e-2


@pytest.mark.parametrize("name", ["lif", "plif", "ternary", "guo", "integer"])
def test_membranes_are_float32_and_spikes_of_the_asked_dtype(name):
    module = CASES[name][0]
    for given, dtype, want in [
        ("bfloat16", None, "bfloat16"),
        ("float32", jnp.bfloat16, "bfloat16"),
        ("bfloat16", jnp.float32, "float32"),
    ]:
        cell = module.clone(dtype=dtype)
        x = jnp.asarray(X, given)
        variables = jax.eval_shape(cell.init, jax.random.key(0), x)
        s, kept = jax.eval_shape(
            lambda v, cell=cell, x=x: cell.apply(v, x, mutable=["membrane", "spikes"]),
            variables,
        )
        assert s.dtype == want and kept["spikes"]["out"][0].dtype == want
        assert kept["membrane"]["state"].v.dtype == jnp.float32


@pytest.mark.parametrize("module", [neuron.LIF(), neuron.Ternary(), neuron.Integer()])
def test_spikes_are_tagged_with_their_alphabet(module):
    text = str(jax.make_jaxpr(lambda x: module.apply({}, x))(jnp.asarray(X)))
    assert f"spikes/{module.kind}" in text


# --- options of models and configs ----------------------------------------------------


def test_resolve_completes():
    paper = dict(rule="paper", tau=2.0, v_th=1.0, decay_input=False, surrogate="atan")
    paper |= dict(v_reset=0.0, soft_reset=False, detach_reset=True, learn_tau=False)
    assert neuron.resolve(None) == neuron.resolve({}) == paper
    assert neuron.resolve({"tau": None, "v_th": 0.5}) == paper | {"v_th": 0.5}
    more = dict(v_reset=-0.5, soft_reset=False, detach_reset=False, learn_tau=True)
    assert neuron.resolve(more) == paper | more
    assert neuron.resolve({"rule": "guo"})["rule"] == "guo"
    given = {"tau": 3.0}
    neuron.resolve(given)
    assert given == {"tau": 3.0}


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(theta=1, v_th=1), ["theta", "v_th", "decay_input"]),
        (dict(rule="if"), ["'if'", "paper", "guo"]),
        (dict(surrogate="atan(2"), ["'atan(2'", "atan", "sigmoid"]),
        (dict(surrogate="erf"), ["'erf'", "atan", "sigmoid"]),
        (dict(rule="guo", tau=4.0), ["guo", "tau", "4.0"]),
        (dict(rule="guo", learn_tau=True), ["guo", "learn_tau"]),
        (dict(v_th="1"), ["neuron.v_th", "'1'", "a number"]),
        (dict(tau=True), ["neuron.tau", "True", "a number"]),
        (dict(decay_input=1), ["neuron.decay_input", "1", "bool"]),
        (dict(v_th=0.0), ["neuron", "v_th is 0.0"]),
        (dict(tau=0.5), ["neuron", "tau is 0.5"]),
        (dict(soft_reset=True, v_reset=-1.0), ["neuron", "soft_reset"]),
    ],
)
def test_resolve_refuses(options, words):
    with pytest.raises(ValueError) as error:
        neuron.resolve(options)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.array])
def test_scalars_of_numpy_are_numbers(kind):
    assert neuron.resolve(dict(tau=kind(2))) == neuron.resolve(dict(tau=2))
    assert neuron.resolve(dict(soft_reset=np.bool_(True)))["soft_reset"] is True
    with pytest.raises(ValueError, match="v_th is 0"):
        neuron.resolve(dict(v_th=kind(0)))


@pytest.mark.filterwarnings("error")
def test_numpy_arrays_are_taken():
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    want = neuron.LIF().apply({}, jnp.asarray(x))
    np.testing.assert_array_equal(neuron.LIF().apply({}, x), want)


def test_make_gives_the_neuron_that_options_name():
    make = neuron.make
    assert make("binary", None) == neuron.LIF()
    assert make("ternary", dict(tau=4.0), dtype=jnp.float32) == neuron.Ternary(
        tau=4.0, dtype=jnp.float32
    )
    assert make("binary", dict(v_th=2.0), v_th=0.5).v_th == 0.5
    assert make("ternary", dict(rule="guo"), v_th=0.5) == neuron.Guo(form="ternary")
    assert make("binary", dict(rule="guo"), unit=8) == neuron.Guo(threshold=4.0)
    wide = make("binary", dict(v_reset=-0.25, tau=4.0), unit=8, v_th=0.5)
    assert (wide.v_th, wide.v_reset, wide.tau) == (4, -2, 4)
    assert make("binary", dict(learn_tau=True), name="x").learn_tau
    assert make("binary", None, name="q_neuron").name == "q_neuron"


def test_nonsense_is_refused_when_it_runs():
    x = jnp.ones((1, 2, 3))
    for module, error, message in [
        (neuron.LIF(tau=1.0, learn_tau=True), ValueError, "tau starts at 1.0"),
        (neuron.LIF(tau=0.5), ValueError, "tau is 0.5"),
        (neuron.LIF(v_th=-1.0), ValueError, "v_th is -1.0"),
        (neuron.LIF(soft_reset=True, v_reset=-1.0), ValueError, "soft_reset"),
        (neuron.Guo(form="real"), ValueError, "'real'"),
        (neuron.Integer(levels=0), ValueError, "levels is 0"),
        (neuron.Neuron(), TypeError, "LIF"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            module.init(jax.random.key(0), x)


def test_surrogates_are_found_by_name():
    for text, want in [
        ("atan", surrogate.atan()),
        ("sigmoid(2)", surrogate.sigmoid(2)),
    ]:
        module = neuron.LIF(surrogate=text)
        _, step, _ = module.bind({}).dynamics()
        assert step.keywords["spike_fn"] is want
