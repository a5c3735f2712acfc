import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.analysis import audit
from a2os2a_jax.functional import neurons, spikes, surrogate


def bind(kind, init_options=(), **options):
    """(init, step) of a neuron with its options bound, as `unroll` takes them."""
    if "v_reset" in options:
        init_options = {"v_reset": options["v_reset"]}
    init = functools.partial(getattr(neurons, f"{kind}_init"), **dict(init_options))
    return init, functools.partial(getattr(neurons, f"{kind}_step"), **options)


NEURONS = {
    "if": bind("if"),
    "if soft": bind("if", soft_reset=True),
    "if to -1/4": bind("if", v_reset=-0.25),
    "lif": bind("lif"),
    "lif tau 4 soft": bind("lif", tau=4.0, soft_reset=True),
    "lif tau 4 decayed to -1/4": bind("lif", tau=4, decay_input=True, v_reset=-0.25),
    "plif": bind("lif", tau=np.float32(2)),
    "ternary": bind("ternary"),
    "ternary tau 4 soft": bind("ternary", tau=4.0, soft_reset=True, v_th=0.5),
    "ternary decayed to -1/4": bind("ternary", decay_input=True, v_reset=-0.25),
    "guo binary": bind("guo"),
    "guo ternary": bind("guo", form="ternary"),
    "integer": bind("integer"),
    "integer normalised": bind("integer", levels=2, normalise=True),
}
BINARY = {name: {0, 1} for name in NEURONS if "if" in name or "binary" in name}
ALPHABET = BINARY | {
    "ternary": {-1, 0, 1},
    "ternary tau 4 soft": {-1, 0, 1},
    "ternary decayed to -1/4": {-1, 0, 1},
    "guo ternary": {-1, 0, 1},
    "integer": {0, 1, 2, 3, 4},
    "integer normalised": {0, 0.5, 1},
}


def dyadic(*shape, scale=2.0, seed=0, dtype=jnp.float32):
    """Normal numbers rounded to sixteenths: membranes that decay by 1/2 or 3/4 for a
    few steps are then exact, in whatever order a compiler multiplies and adds."""
    x = np.random.default_rng(seed).normal(0, scale, shape)
    return jnp.asarray(np.round(16 * x) / 16, dtype)


def walk(step, state, x):
    """Step by step in Python, without `unroll`: all spikes, all membranes."""
    s, v = [], []
    for x_t in x:
        state, s_t = step(state, x_t)
        s.append(s_t)
        v.append(state.v)
    return jnp.stack(s), jnp.stack(v)


# --- worked by hand -------------------------------------------------------------------

X = [0.5, 0.75, 0.25, 1.0, -1.0]
BY_HAND = {  # neuron: (input, spikes, membranes), one number a step
    "if": (bind("if"), X, [0, 1, 0, 1, 0], [0.5, 0, 0.25, 0, -1]),
    "if soft": (
        bind("if", soft_reset=True),
        X,
        [0, 1, 0, 1, 0],
        [0.5, 0.25, 0.5, 0.5, -0.5],
    ),
    "if to -1/4": (
        bind("if", v_reset=-0.25),
        [0.5, 0.75, 1.25, 1.0, -1.0],
        [0, 1, 1, 0, 0],
        [0.25, -0.25, -0.25, 0.75, -0.25],
    ),
    "lif": (bind("lif"), X, [0, 1, 0, 1, 0], [0.5, 0, 0.25, 0, -1]),
    "lif soft": (
        bind("lif", soft_reset=True),
        X,
        [0, 1, 0, 1, 0],
        [0.5, 0, 0.25, 0.125, -0.9375],
    ),
    "lif decayed": (
        bind("lif", decay_input=True, tau=4.0),
        [2.0, 2.5, 2.0, 4.0, -4.0],
        [0, 1, 0, 1, 0],
        [0.5, 0, 0.5, 0, -1],
    ),
    "lif to -1/2": (
        bind("lif", v_reset=-0.5),
        [1.0, 1.0, 0.5, 1.0, -1.0],
        [0, 1, 0, 0, 0],
        [0.5, -0.5, 0, 0.75, -0.875],
    ),
    "lif at threshold 2": (bind("lif", v_th=2.0), [1, 1.5, 3], [0, 1, 1], [1, 0, 0]),
    "lif soft at threshold 2": (
        bind("lif", v_th=2.0, soft_reset=True),
        *([1, 1.5, 3], [0, 1, 1], [1, 0, 1]),
    ),
    "ternary soft at threshold 1/2": (
        bind("ternary", v_th=0.5, soft_reset=True),
        *([0.75, -1, 0.5], [1, -1, 0], [0.25, -0.375, 0.3125]),
    ),
    "ternary": (
        bind("ternary"),
        [0.5, -0.75, -0.875, 1.0, -1.0],
        [0, 0, -1, 1, -1],
        [0.5, -0.5, 0, 0, 0],
    ),
    "ternary soft": (
        bind("ternary", soft_reset=True),
        [0.5, -0.75, -0.875, 1.0625, -1.5],
        [0, 0, -1, 1, -1],
        [0.5, -0.5, -0.125, 0, -0.5],
    ),
    "ternary to 1/4": (
        bind("ternary", v_reset=0.25),
        [0.5, -0.75, -1.125, 1.0, -1.0],
        [0, 0, -1, 1, 0],
        [0.75, -0.25, 0.25, 0.25, -0.75],
    ),
    "guo binary": (
        bind("guo"),
        [0.5, 0.375, 0.75, -0.5, 0.25],
        [0, 0, 1, 0, 0],
        [0.5, 0.5, 0, -0.5, 0.125],
    ),
    "guo ternary": (
        bind("guo", form="ternary"),
        [0.5, 0.375, 0.25, -0.5, -0.5],
        [1, 0, 0, 0, -1],
        [0, 0.375, 0.34375, -0.4140625, 0],
    ),
    "integer": (  # halves are rounded to even
        bind("integer"),
        [2.5, 1.375, 10.125, -3.5, 0.5],
        [2, 2, 4, 0, 0],
        [0.125, -0.125, 1.5, -0.5, 0],
    ),
    "integer normalised": (
        bind("integer", levels=2, beta=0.5, normalise=True),
        [1.0, 3.0, 0.5],
        [0.5, 1, 0.5],
        [0, 0.5, 0],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_spikes_and_membranes_worked_by_hand(name):
    (init, step), x, *expected = BY_HAND[name]
    s, v = walk(step, init((1,)), jnp.array(x)[:, None])
    np.testing.assert_array_equal(s[:, 0], expected[0])
    np.testing.assert_array_equal(v[:, 0], expected[1])


@pytest.mark.parametrize("v_reset", [0.0, -0.5])
@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("tau", [1.5, 2.0, 10.0])
@pytest.mark.parametrize("kind", ["lif", "ternary"])
def test_below_threshold_the_membrane_follows_the_closed_form(
    kind, tau, decay_input, v_reset
):
    init, step = bind(kind, tau=tau, decay_input=decay_input, v_reset=v_reset)
    start = init((1,))._replace(v=jnp.array([0.5]))
    s, v = walk(step, start, jnp.full((8, 1), 0.02))
    left = (1 - 1 / tau) ** np.arange(1, 9)  # of the distance to the steady state
    steady = v_reset + 0.02 * (1 if decay_input else tau)
    np.testing.assert_allclose(v[:, 0], steady + left * (0.5 - steady), atol=1e-6)
    assert not s.any()


def test_if_is_lif_without_a_leak():
    x = dyadic(9, 40)
    for how in {}, {"soft_reset": True}, {"v_reset": -0.5}:
        (init, step), (_, leaky) = bind("if", **how), bind("lif", tau=np.inf, **how)
        s, v = walk(step, init((40,)), x)
        for got, expected in zip(walk(leaky, init((40,)), x), (s, v), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_the_size_of_a_ternary_spike_is_no_product():
    """So that {0, 1} follows from {-1, 0, 1} interval by interval."""
    s = jnp.array([-1.0, 0, 1])
    np.testing.assert_array_equal(neurons._magnitude(s), [1, 0, 1])
    slopes = jax.grad(lambda s: neurons._magnitude(s).sum())(s)
    np.testing.assert_array_equal(slopes, [-1, 0, 1])
    text = str(jax.make_jaxpr(neurons._magnitude)(s))
    assert "abs" in text and "mul" not in text


@pytest.mark.parametrize("form", ["binary", "ternary"])
def test_another_threshold_of_guo_is_another_unit(form):
    x = dyadic(9, 40)
    init, step = bind("guo", form=form)
    _, wide = bind("guo", form=form, threshold=4.0)  # 8 times 1/2

    def summed(x, step):
        return neurons.unroll(step, init, x).sum()

    s, v = walk(step, init((40,)), x)
    got, potentials = walk(wide, init((40,)), 8 * x)
    np.testing.assert_array_equal(got, s)
    np.testing.assert_array_equal(potentials, 8 * np.asarray(v))
    slope = jax.jit(jax.grad(summed), static_argnums=1)
    np.testing.assert_allclose(8 * slope(8 * x, wide), slope(x, step), rtol=1e-6)
    with pytest.raises(
        ValueError, match="guo_step: threshold is 0, expected a number > 0"
    ):
        neurons.guo_step(init((40,)), x[0], threshold=0)


@pytest.mark.parametrize("name", ["ternary", "ternary tau 4 soft", "guo ternary"])
def test_ternary_neurons_know_no_sign(name):
    init, step = NEURONS[name]
    x = dyadic(9, 40)
    s, v = walk(step, init((40,)), x)
    for got, expected in zip(walk(step, init((40,)), -x), (-s, -v), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_tau_1_has_no_memory():
    init, step = bind("lif", tau=1)
    x = dyadic(9, 40)
    np.testing.assert_array_equal(walk(step, init((40,)), x)[0], x >= 1)


def test_an_array_of_tau_is_a_neuron_for_each():
    tau, x = [1.5, 2.0, 5.0], dyadic(9, 3, scale=1.0)
    s, v = walk(bind("lif", tau=jnp.array(tau))[1], neurons.lif_init((3,)), x)
    for i, one in enumerate(tau):
        alone = walk(bind("lif", tau=one)[1], neurons.lif_init(()), x[:, i])
        np.testing.assert_array_equal(s[:, i], alone[0])
        np.testing.assert_allclose(v[:, i], alone[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("levels", [1, 3, 4])
def test_integer_spikes_expand_to_as_many_binary_ones(levels):
    init, step = bind("integer", levels=levels)
    s, _ = walk(step, init((50,)), dyadic(6, 50))
    slots = spikes.expand(s, levels)
    assert slots.shape == (levels, 6, 50) and set(np.unique(slots)) == {0, 1}
    np.testing.assert_array_equal(slots.sum(0), s)
    _, normalised = bind("integer", levels=levels, normalise=True)
    share, _ = walk(normalised, init((50,)), dyadic(6, 50))
    np.testing.assert_array_equal(share, s / levels)


def test_relu_keeps_what_is_positive_and_has_slope_0_at_0():
    x = jnp.array([-1.0, 0.0, 2.0])
    np.testing.assert_array_equal(neurons.relu(x), [0, 0, 2])
    slope = jax.vmap(jax.grad(neurons.relu))(x)
    np.testing.assert_array_equal(slope, [0, 0, 1])


# --- state and time -------------------------------------------------------------------


@pytest.mark.parametrize("name", NEURONS)
def test_steps_chunks_and_all_at_once_are_equal(name):
    init, step = NEURONS[name]
    x = dyadic(7, 4, 9)
    s, v = walk(step, init((4, 9)), x)
    assert set(np.unique(s).tolist()) == ALPHABET[name]
    for cuts in [], [0, 1, 4]:
        state, parts = None, []
        for part in jnp.split(x, jnp.array(cuts, int)):
            out, state = neurons.unroll(
                step, init, part, state=state, return_state=True
            )
            parts.append(out)
        np.testing.assert_array_equal(jnp.concatenate(parts), s, err_msg=f"{cuts}")
        np.testing.assert_array_equal(state.v, v[-1], err_msg=f"{cuts}")


@pytest.mark.parametrize("tau", [1.5, 3.0, 10.0])
@pytest.mark.parametrize("kind", ["lif", "ternary"])
def test_other_taus_agree_to_rounding(kind, tau, x64):
    init, step = bind(kind, tau=tau, v_reset=-0.1, decay_input=True)
    x = dyadic(7, 4, 9, scale=2.0 * tau, dtype=jnp.float64)
    s, v = walk(step, init((4, 9), x.dtype), x)
    out, state = neurons.unroll(step, init, x[:3], return_state=True)
    rest, state = neurons.unroll(step, init, x[3:], state=state, return_state=True)
    np.testing.assert_array_equal(jnp.concatenate([out, rest]), s)
    np.testing.assert_allclose(state.v, v[-1], rtol=0, atol=1e-12)
    assert 0.02 < abs(s).mean() < 0.7


def test_longer_than_max_unroll_is_a_loop_with_the_same_result(monkeypatch):
    init, step = bind("lif", soft_reset=True)
    long = neurons.MAX_UNROLL + 1
    x = dyadic(long, 5)

    def run(x):
        return neurons.unroll(step, init, x, return_state=True)

    def loops(x):
        return "while" in jax.jit(lambda x: run(x)).lower(x).as_text()

    assert loops(x) and not loops(x[1:])
    s, state = run(x)
    monkeypatch.setattr(neurons, "MAX_UNROLL", long)
    assert not loops(x)
    for got, expected in zip(run(x), (s, state), strict=True):
        chex.assert_trees_all_equal(got, expected)
    np.testing.assert_array_equal(walk(step, init((5,)), x)[0], s)


@pytest.mark.parametrize("axis", [1, 2, -1, -3])
def test_time_may_be_on_any_axis(axis):
    init, step = NEURONS["lif"]
    x = dyadic(5, 3, 4)
    moved = neurons.unroll(step, init, jnp.moveaxis(x, 0, axis), axis=axis)
    s = neurons.unroll(step, init, x)
    np.testing.assert_array_equal(jnp.moveaxis(moved, axis, 0), s)
    assert 0 < s.mean() < 1


@pytest.mark.parametrize("name", NEURONS)
def test_no_time_leaves_the_state_untouched(name):
    init, step = NEURONS[name]
    start = init((3, 2))._replace(v=dyadic(3, 2))
    s, state = neurons.unroll(
        step, init, jnp.zeros((3, 0, 2)), axis=1, state=start, return_state=True
    )
    assert s.shape == (3, 0, 2) and type(state) is type(start)
    np.testing.assert_array_equal(state.v, start.v)


@pytest.mark.parametrize("name", NEURONS)
def test_a_permuted_batch_permutes_the_spikes_and_nothing_else(name):
    init, step = NEURONS[name]
    x, order = dyadic(8, 4, 6), np.array([3, 5, 0, 1, 7, 2, 6, 4])  # [B, T, N]
    run = jax.jit(lambda x: neurons.unroll(step, init, x, axis=1))
    np.testing.assert_array_equal(run(x[order]), run(x)[order])
    assert (run(x[order]) != run(x)).any()


@pytest.mark.parametrize("name", NEURONS)
def test_bfloat16_spikes_come_from_float32_membranes(name):
    init, step = NEURONS[name]
    x = dyadic(6, 40, dtype=jnp.bfloat16)
    s, state = neurons.unroll(step, init, x, return_state=True)
    assert s.dtype == jnp.bfloat16 and state.v.dtype == jnp.float32
    wide, v = walk(step, init((40,)), x.astype(jnp.float32))
    np.testing.assert_array_equal(s.astype(jnp.float32), wide)
    np.testing.assert_array_equal(state.v, v[-1])


@pytest.mark.parametrize("name", NEURONS)
def test_float64_stays_float64(name, x64):
    init, step = NEURONS[name]
    x = dyadic(3, 8, dtype=jnp.float64)
    s, state = neurons.unroll(step, init, x, return_state=True)
    assert s.dtype == state.v.dtype == jnp.float64


STEPS = {
    kind: (getattr(neurons, f"{kind}_init"), getattr(neurons, f"{kind}_step"))
    for kind in ("if", "lif", "ternary", "guo", "integer")
}


@pytest.mark.parametrize("kind", STEPS)
def test_rest_is_v_reset_in_at_least_float32(kind):
    init, _ = STEPS[kind]
    for dtype in jnp.bfloat16, jnp.float16, jnp.float32:
        state = init((2, 3), dtype)
        assert state.v.shape == (2, 3) and state.v.dtype == jnp.float32
        assert not state.v.any()
    if kind in ("if", "lif", "ternary"):
        assert (init((2,), v_reset=-0.5).v == -0.5).all()


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize("kind", STEPS)
def test_shapes_that_differ_are_refused(kind):
    init, step = STEPS[kind]
    message = rf"{kind}_step: state \(3,\) and input \(1,\)"
    with pytest.raises(ValueError, match=message):
        step(init((3,)), jnp.zeros(1))


LEAKY, RESETTING = ("lif", "ternary"), ("if", "lif", "ternary")
REFUSED = [
    (LEAKY, {"tau": 0.5}, "tau is 0.5, expected >= 1"),
    (LEAKY, {"tau": float("nan")}, "tau is nan, expected >= 1"),
    (RESETTING, {"v_th": 0.0}, "v_th is 0.0, expected > v_reset = 0.0"),
    (RESETTING, {"v_th": 1, "v_reset": 2}, "v_th is 1, expected > v_reset = 2"),
    (
        RESETTING,
        {"v_reset": -1.0, "soft_reset": True},
        "v_reset is -1.0, expected 0 with soft_reset",
    ),
    (["guo"], {"form": "both"}, "form is 'both', expected 'binary' or 'ternary'"),
    (["integer"], {"levels": 0}, "levels is 0, expected an integer >= 1"),
]


@pytest.mark.parametrize(
    "kind, options, message",
    [(kind, how, message) for kinds, how, message in REFUSED for kind in kinds],
)
def test_refusals_name_step_got_and_expected(kind, options, message):
    init, step = STEPS[kind]
    with pytest.raises(ValueError, match=re.escape(f"{kind}_step: {message}")):
        step(init((1,)), jnp.zeros(1), **options)


@pytest.mark.parametrize("kind", LEAKY)
@pytest.mark.parametrize("number", [np.float32, np.float64, np.array, jnp.asarray])
def test_numbers_are_checked_whatever_their_type(kind, number):
    init, step = STEPS[kind]
    for key, value in [("tau", 0.5), ("v_th", -1.0), ("v_th", float("nan"))]:
        with pytest.raises(ValueError, match=f"{kind}_step: {key} is "):
            step(init((1,)), jnp.zeros(1), **{key: number(value)})
    with pytest.raises(ValueError, match=r"tau is \[2.+0.5"):
        step(init((2,)), jnp.zeros(2), tau=number([2.0, 0.5]))


@pytest.mark.parametrize("levels", [2.5, np.array([2, 3])])
def test_levels_are_one_integer(levels):
    with pytest.raises(ValueError, match="levels is .*, expected an integer >= 1"):
        neurons.integer_step(neurons.integer_init((2,)), jnp.zeros(2), levels=levels)


def test_a_threshold_for_each_of_the_earlier_neurons_is_refused():
    state = neurons.guo_init((2,))
    with pytest.raises(ValueError, match="expected a number > 0"):
        neurons.guo_step(state, jnp.zeros(2), threshold=jnp.array([0.5, 1.0]))


@pytest.mark.parametrize("kind", RESETTING)
def test_a_threshold_for_each_neuron_is_learnt(kind, x64):
    """Arrays, traced or not, are what one number is for each neuron by itself."""
    init, step = bind(kind)
    x, v_th = jnp.array([[0.8, -1.4, 2.1]] * 2), jnp.array([0.7, 1.0, 3.0])

    def total(v_th, x):
        options = functools.partial(step, v_th=v_th)
        s = neurons.unroll(options, init, x)
        return (s * jnp.arange(1.0, 1 + x.size).reshape(x.shape)).sum(), s

    slopes, spikes = jax.jit(jax.grad(total, has_aux=True))(v_th, x)
    for i in range(3):
        alone = neurons.unroll(
            functools.partial(step, v_th=float(v_th[i])), init, x[:, i]
        )
        np.testing.assert_array_equal(spikes[:, i], alone)
    assert np.isfinite(slopes).all() and (np.abs(slopes) > 1e-3).all()


# --- what comes in --------------------------------------------------------------------


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.filterwarnings("error")
def test_lists_and_numpy_arrays_are_taken(kind):
    init, step = STEPS[kind]
    x = [[0.6, 1.5, -1.2], [0.6, 0.3, 2.4]]
    want = neurons.unroll(step, init, jnp.array(x))
    for given in (x, np.array(x, np.float64), np.array(x, np.float32)):
        np.testing.assert_array_equal(neurons.unroll(step, init, given), want)
        state, s = step(init((3,)), given[0])
        np.testing.assert_array_equal(s, want[0])
        assert s.dtype == state.v.dtype == jnp.float32


@pytest.mark.parametrize("shape, axis", [((), 0), ((3, 2), 2), ((3, 2), -3)])
def test_a_missing_time_axis_is_refused(shape, axis):
    message = re.escape(f"unroll: x {shape} has no axis {axis}")
    with pytest.raises(ValueError, match=message):
        neurons.unroll(*reversed(STEPS["lif"]), jnp.zeros(shape), axis=axis)


# --- gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("decay_input", [False, True], ids=["paper", "library"])
@pytest.mark.parametrize("kind", LEAKY)
def test_the_slope_of_plif_is_finite_at_every_w(kind, decay_input):
    """Where 1/sigmoid(w) squared overflows, too; it is that of the equation."""
    init, step = bind(kind, decay_input=decay_input, v_reset=-0.5)
    x = jnp.array([0.3, 0.2, 0.9])

    def membrane(w):
        state = init(())
        for x_t in x:
            state, _ = step(state, x_t, w=w)
        return state.v

    w = jnp.array([-200.0, -88.0, -44.0, -3.0, 0.0, 3.0, 44.0, 200.0])
    values, slopes = jax.vmap(jax.value_and_grad(membrane))(w)
    assert np.isfinite(values).all() and np.isfinite(slopes).all()
    assert abs(slopes[3]) > 1e-3 and abs(slopes[4]) > 1e-3


def test_w_is_tau_by_another_name(x64):
    w = jnp.array([-3.0, 0.0, 1.5])
    x = jnp.array([[0.3, 2.0, 0.4], [0.9, -0.2, 0.6]])
    init, step = bind("lif", decay_input=True)

    def run(**options):
        return neurons.unroll(functools.partial(step, **options), init, x)

    np.testing.assert_array_equal(run(w=w), run(tau=1 / jax.nn.sigmoid(w)))
    state, _ = step(init((3,)), x[0], w=w)
    other, _ = step(init((3,)), x[0], tau=1 / jax.nn.sigmoid(w))
    np.testing.assert_allclose(state.v, other.v, rtol=1e-14)


SURROGATES = {name: make() for name, make in surrogate.NAMED.items()}
RESETS = list(itertools.product([False, True], [False, True]))


@pytest.mark.parametrize("soft_reset, detach_reset", RESETS)
@pytest.mark.parametrize("spike_fn", SURROGATES)
@pytest.mark.parametrize("kind", ["if", "lif", "plif", "ternary"])
def test_gradient_is_finite_and_not_zero(kind, spike_fn, soft_reset, detach_reset):
    how = {"soft_reset": soft_reset, "detach_reset": detach_reset}
    how["spike_fn"] = SURROGATES[spike_fn]
    x, weight = dyadic(2, 40), dyadic(2, 40, seed=1)

    def loss(x, tau):
        leak = {"tau": tau} if kind == "plif" else {}
        init, step = bind("lif" if kind == "plif" else kind, **how, **leak)
        return (walk(step, init((40,)), x)[0] * weight).sum()

    gradients = jax.grad(loss, argnums=(0, 1))(x, jnp.float32(2.0))
    assert all(jnp.isfinite(g).all() for g in gradients)
    assert all((gradients[0] != 0).any(1))  # at every step
    assert (gradients[1] != 0) == (kind == "plif")


def g(x):
    return 1 / (1 + (np.pi * x) ** 2)  # the slope of atan()


def binary(h):
    return 1.0 * (h >= 1), g(h - 1)


def ternary(h):
    return np.sign(h) * (abs(h) >= 1), g(h - 1) + g(-h - 1)


def guo_binary(h):
    return 1.0 * (h > 0.5), 1.0 * ((h >= 0) & (h <= 1))


def guo_ternary(h):
    return np.sign(h) * (abs(h) >= 0.5), 1.0 * (abs(h) <= 1)


def integer(h):
    return np.clip(np.round(h), 0, 4), 1.0 * ((h >= 0) & (h <= 4))


def hard(h, s, ds, v_reset=0.0):
    """Membrane after the reset, and dv/dh with ds/dh = ds."""
    fired = abs(s)
    sign = np.sign(s) if (s < 0).any() else 1  # of d|s|/ds; 0 where s = 0 of three
    return h * (1 - fired) + v_reset * fired, 1 - fired + (v_reset - h) * sign * ds


def soft(h, s, ds):
    return h - s, 1 - ds


def quarter(h, s, ds):
    return (h - s) / 4, (1 - ds) / 4


to_minus_half = functools.partial(hard, v_reset=-0.5)
LOOSE = {"detach_reset": False}
CHAIN = {  # neuron: fire, reset, decay, factor of the input, v_reset, reset detached?
    "if": (bind("if", **LOOSE), binary, hard, 1, 1, 0, False),
    "lif": (bind("lif", **LOOSE), binary, hard, 0.5, 1, 0, False),
    "lif detached": (bind("lif"), binary, hard, 0.5, 1, 0, True),
    "lif soft": (
        bind("lif", soft_reset=True, **LOOSE),
        *(binary, soft, 0.5, 1, 0, False),
    ),
    "lif soft detached": (
        bind("lif", soft_reset=True),
        *(binary, soft, 0.5, 1, 0, True),
    ),
    "lif to -1/2, decayed": (
        bind("lif", tau=4.0, v_reset=-0.5, decay_input=True, **LOOSE),
        *(binary, to_minus_half, 0.75, 0.25, -0.5, False),
    ),
    "ternary": (bind("ternary", **LOOSE), ternary, hard, 0.5, 1, 0, False),
    "ternary detached": (bind("ternary"), ternary, hard, 0.5, 1, 0, True),
    "ternary soft": (
        bind("ternary", soft_reset=True, **LOOSE),
        *(ternary, soft, 0.5, 1, 0, False),
    ),
    "guo binary": (bind("guo"), guo_binary, hard, 0.25, 1, 0, False),
    "guo ternary": (
        bind("guo", form="ternary"),
        *(guo_ternary, hard, 0.25, 1, 0, False),
    ),
    "integer": (bind("integer"), integer, quarter, 1, 1, 0, False),
    "integer detached": (
        bind("integer", detach_reset=True),
        *(integer, quarter, 1, 1, 0, True),
    ),
}


@pytest.mark.parametrize("name", CHAIN)
def test_gradient_through_time_is_the_chain_rule_in_numpy(name, x64):
    (init, step), fire, reset, decay, drive, rest, detached = CHAIN[name]
    x, weight_s = (np.asarray(dyadic(4, 40, seed=i, dtype="float64")) for i in (0, 1))
    weight_v = np.asarray(dyadic(40, seed=2, dtype="float64"))

    v, local = np.full(40, float(rest)), []
    for x_t in x:
        h = rest + decay * (v - rest) + drive * x_t
        s, ds = fire(h)
        v, dv = reset(h, s, 0 * ds if detached else ds)
        local.append((ds, dv))
    dv_after, expected = weight_v, []
    for (ds, dv), weight in zip(local[::-1], weight_s[::-1], strict=True):
        dh = weight * ds + dv_after * dv
        expected.insert(0, drive * dh)
        dv_after = decay * dh

    def loss(x):
        s, state = neurons.unroll(step, init, x, return_state=True)
        return (s * weight_s).sum() + (state.v * weight_v).sum()

    gradient = jax.grad(loss)(jnp.asarray(x))
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-10)


RESETS_BY_SELECTS = [  # kind, threshold, dtype, how
    ("if", jnp.linspace(0.25, 1.5, 40), "float32", dict(soft_reset=True)),
    ("lif", jnp.linspace(0.25, 1.5, 40), "bfloat16", dict(soft_reset=True)),
    ("lif", 0.2, "float64", dict(soft_reset=True)),
    ("lif", 0.7, "bfloat16", dict(v_reset=-0.3)),
    ("ternary", 0.2, "float32", dict(soft_reset=True)),
    ("ternary", 0.7, "float64", dict(v_reset=-0.3)),
]


@pytest.mark.parametrize(("kind", "v_th", "dtype", "how"), RESETS_BY_SELECTS)
def test_a_detached_reset_is_the_formula(kind, v_th, dtype, how, x64):
    """In value, dtype and gradients, those of the threshold among them."""
    _, step = bind(kind, **how)
    v, x, weight = (dyadic(40, seed=i, dtype=dtype) for i in range(3))
    state = neurons.LIFState(v)
    array = isinstance(v_th, jax.Array)
    v_th = v_th.astype(dtype) if array else v_th

    def formula(state, x, v_th):
        decay, rest = 1 if kind == "if" else 0.5, how.get("v_reset", 0.0)
        h = rest + decay * (state.v - rest) + x
        s = jax.lax.stop_gradient(step(state, x, v_th=v_th)[1])
        fired = jnp.abs(s)
        return h - v_th * s if "soft_reset" in how else h * (1 - fired) + rest * fired

    def select(state, x, v_th):
        return step(state, x, v_th=v_th)[0].v

    fired = step(state, x, v_th=v_th)[1]
    assert 0.1 < (fired != 0).mean() < 0.95
    results = []
    for after in (select, formula):
        run = lambda *args, after=after: (after(*args) * weight).sum()  # noqa: E731
        which = (0, 1, 2) if array else (0, 1)
        results += [(after(state, x, v_th), jax.grad(run, which)(state, x, v_th))]
    got, want = results
    assert got[0].dtype == dtype
    chex.assert_trees_all_equal(got, want)


WITHOUT_PRODUCTS = [dict(v_reset=-0.3), dict(soft_reset=True, v_th=0.2)]


@pytest.mark.parametrize("options", WITHOUT_PRODUCTS, ids=["hard", "soft"])
@pytest.mark.parametrize("kind", ["if", "lif", "ternary"])
def test_a_reset_takes_no_product(kind, options):
    """Unless the gradient has to pass through it."""
    x = jax.ShapeDtypeStruct((8,), jnp.float32)
    for loose in (False, True):
        init, step = bind(kind, **options, detach_reset=not loose)
        report = audit.certify(step, init((8,)), x, params=())
        assert report.addition_only != loose, str(report)


@pytest.mark.parametrize("soft_reset", [False, True])
@pytest.mark.parametrize("curve", ["atan", "sigmoid"])
@pytest.mark.parametrize("kind", ["if", "lif", "ternary"])
def test_with_the_curve_for_a_spike_gradients_are_differences(
    kind, curve, soft_reset, x64
):
    smooth = SURROGATES[curve].curve
    how = {"soft_reset": soft_reset, "detach_reset": False, "spike_fn": smooth}
    init, step = bind(kind, **how)
    x, weight = (dyadic(3, 4, seed=i, dtype="float64") for i in (0, 1))

    def loss(x):
        s, v = walk(step, init((4,), x.dtype), x)
        return (s * weight).sum() + (v[-1] * v[-1]).sum()

    e = 1e-6 * jnp.eye(x.size).reshape(-1, *x.shape)
    differences = jax.vmap(lambda e: loss(x + e) - loss(x - e))(e) / 2e-6
    np.testing.assert_allclose(jax.grad(loss)(x).ravel(), differences, atol=1e-7)


# --- against the reference implementations --------------------------------------------

FACTORIES = {
    "ATan": surrogate.atan,
    "Sigmoid": surrogate.sigmoid,
    "Rect": lambda alpha: surrogate.rectangle(1 / alpha),
    "PiecewiseQuadratic": lambda alpha: surrogate.triangle(1 / alpha),
}
NOT_OURS = {
    *("Erf", "FakeNumericalGradient", "LeakyKReLU", "LogTailedReLU", "PiecewiseExp"),
    *("NonzeroSignLogAbs", "PiecewiseLeakyReLU_full", "PiecewiseLeakyReLU_half"),
    *("QPseudoSpike", "S2NN", "SoftSign", "SquarewaveFourierSeries", "SuperSpike"),
}


def referred(key):
    """A reference key as a function (x, w) -> spikes, membranes; w is PLIF's."""
    kind, *pairs = key.split("/")[:5]
    value = dict(pair.split("=") for pair in pairs if "=" in pair)
    how = {"v_th": float(value["vth"])}
    if value["reset"] == "soft":
        how["soft_reset"] = True
    else:
        how["v_reset"] = float(value["reset"].removeprefix("hard"))
    if kind != "IF":
        how |= {"tau": float(value["tau"]), "decay_input": value["decay_input"] == "1"}
    if len(rest := key.split("/")[5:]) > 1:
        name, alpha = re.fullmatch(r"(\w+)\(alpha=(.*)\)", rest[1]).groups()
        how["detach_reset"] = rest[0] == "detach_reset=1"
        how["spike_fn"] = FACTORIES[name](float(alpha))

    def run(x, w):
        leak = {"tau": 1 / jax.nn.sigmoid(w)} if kind == "PLIF" else {}
        init, step = bind("if" if kind == "IF" else "lif", **how | leak)
        return walk(step, init(x.shape[1:], x.dtype), x)

    w = -np.log(float(value["tau"]) - 1)
    return run, jnp.asarray(w)


def close(got, expected, key):
    tolerance = 1e-9 * abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("kind, count", [("IF", 9), ("LIF", 26), ("PLIF", 12)])
def test_spikes_and_membranes_equal_the_reference(kind, count, parity, x64):
    data = parity("prim_neurons_a")
    keys = [k[:-4] for k in data if k.startswith(f"{kind}/") and k.endswith("/spk")]
    assert len(keys) == count
    x = jnp.asarray(data["in/x"], jnp.float64)
    for key in keys:
        run, w = referred(key)
        s, v = run(x, w)
        np.testing.assert_array_equal(s, data[f"{key}/spk"], err_msg=key)
        close(v, data[f"{key}/v"], key)


@pytest.mark.parametrize(
    "kind, name, count",
    [("IF", "ATan", 18), ("IF", "Sigmoid", 18), ("LIF", "ATan", 64)]
    + [("LIF", "Sigmoid", 64), ("LIF", "Rect", 24), ("LIF", "PiecewiseQuadratic", 24)]
    + [("PLIF", "ATan", 24), ("PLIF", "Sigmoid", 24)],
)
def test_gradients_equal_the_reference(kind, name, count, parity, x64):
    data = parity("prim_neurons_a")
    x, weight_s, weight_v = (
        jnp.asarray(data[f"in/{k}"], jnp.float64)
        for k in ("x", "cotangent_spike", "cotangent_v")
    )
    pattern = re.compile(rf"{kind}/.*/{name}\(.*\)/gx_s")
    keys = [k[:-5] for k in data if pattern.fullmatch(k)]
    assert len(keys) == count
    for key in keys:
        run, w = referred(key)
        (s, v), pull = jax.vjp(run, x, w)
        np.testing.assert_array_equal(s, data[key.split("/detach")[0] + "/spk"])
        for loss, weights in {
            "s": (weight_s, jnp.zeros_like(v)),
            "sv": (weight_s, weight_v),
        }.items():
            gradient_x, gradient_w = pull(weights)
            close(gradient_x, data[f"{key}/gx_{loss}"], f"{key}/gx_{loss}")
            assert (f"{key}/gw_{loss}" in data) == (kind == "PLIF")
            if kind == "PLIF":
                close(gradient_w, data[f"{key}/gw_{loss}"], f"{key}/gw_{loss}")


def test_the_reference_holds_no_surrogate_that_is_neither_tested_nor_listed(parity):
    data = parity("prim_neurons_a")
    names = {re.search(r"/(\w+)\(", k)[1] for k in data if "(" in k}
    assert names == NOT_OURS | set(FACTORIES)


@pytest.mark.parametrize(
    "prefix, tau, v_th",
    [("", 2, 1), ("tau2.0_vth0.5/", 2, 0.5), ("tau4.0_vth1.0/", 4, 1)],
)
def test_ternary_neuron_equals_the_reference(prefix, tau, v_th, parity, x64):
    data = parity("prim_ternary_lif")
    init, step = bind("ternary", tau=tau, v_th=v_th, decay_input=True)
    x = jnp.asarray(data["in/x"], jnp.float64)
    s, pull = jax.vjp(lambda x: neurons.unroll(step, init, x), x)
    np.testing.assert_array_equal(s, data[f"{prefix}spk"])
    (gradient,) = pull(jnp.asarray(data["in/cotangent"], x.dtype))
    close(gradient, data[f"{prefix}grad_x"], prefix)


def test_guo_neuron_equals_the_reference_through_time(parity, x64):
    data = parity("prim_ternary_spike_public")
    init, step = bind("guo", form="ternary")
    x = jnp.asarray(data["in/x"], jnp.float64)
    s, pull = jax.vjp(lambda x: neurons.unroll(step, init, x), x)
    np.testing.assert_array_equal(s, data["spk"])
    (gradient,) = pull(jnp.asarray(data["in/cotangent"], x.dtype))
    close(gradient, data["grad_x"], "grad_x")


@pytest.mark.parametrize(
    "name, keys, neuron",
    [
        (
            "prim_ternary_lif",
            ("grid/spk", "grid/grad"),
            bind("ternary", tau=1, decay_input=True),
        ),
        (
            "prim_ternary_spike_public",
            ("grid/ternary_spk", "grid/ternary_grad"),
            bind("guo", form="ternary"),
        ),
        (
            "prim_ternary_spike_public",
            ("grid/binary_spk", "grid/binary_grad"),
            bind("guo", form="binary"),
        ),
    ],
)
def test_one_step_on_a_grid_equals_the_reference(name, keys, neuron, parity, x64):
    data, (init, step) = parity(name), neuron
    x = jnp.asarray(data["grid/x"], jnp.float64)
    s, pull = jax.vjp(lambda x: step(init(x.shape, x.dtype), x)[1], x)
    np.testing.assert_array_equal(s, data[keys[0]])
    close(pull(jnp.ones_like(x))[0], data[keys[1]], keys[1])
