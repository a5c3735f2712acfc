import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.functional import surrogate


def logistic(x):
    return 1 / (1 + np.exp(-x))


def own_curve(x):
    return (jnp.tanh(3 * x) + 1) / 2


# name: (spike function, its slope worked out by hand)
BINARY = {
    "atan()": (surrogate.atan(), lambda x: 1 / (1 + (np.pi * x) ** 2)),
    "atan(5)": (surrogate.atan(5), lambda x: 2.5 / (1 + (2.5 * np.pi * x) ** 2)),
    "sigmoid()": (
        surrogate.sigmoid(),
        lambda x: 4 * logistic(4 * x) * logistic(-4 * x),
    ),
    "sigmoid(1)": (surrogate.sigmoid(1), lambda x: logistic(x) * logistic(-x)),
    "rectangle()": (surrogate.rectangle(), lambda x: 1.0 * (abs(x) < 0.5)),
    "rectangle(0.5)": (surrogate.rectangle(0.5), lambda x: 2.0 * (abs(x) < 0.25)),
    "triangle()": (surrogate.triangle(), lambda x: np.maximum(0, 1 - abs(x))),
    "triangle(2)": (surrogate.triangle(2), lambda x: np.maximum(0, 2 - abs(x)) / 4),
    "straight_through()": (
        surrogate.straight_through(),
        lambda x: 1.0 * (abs(x) <= 0.5),
    ),
    "straight_through(-1,2)": (
        surrogate.straight_through(-1, 2),
        lambda x: 1.0 * ((x >= -1) & (x <= 2)),
    ),
    "own curve": (
        surrogate.from_curve(own_curve),
        lambda x: 1.5 / np.cosh(3 * x) ** 2,
    ),
}
V_TH = 0.75
TERNARY = {
    f"ternary of {name}": (
        surrogate.ternary(spike, V_TH),
        lambda u, g=slope: g(u - V_TH) + g(-u - V_TH),
    )
    for name, (spike, slope) in BINARY.items()
}
CASES = BINARY | TERNARY


def forward(f):
    return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


def reverse(f):
    return lambda x: jax.vjp(f, x)[1](jnp.ones_like(x))[0]


MODES = {
    "forward": forward,
    "reverse": reverse,
    "vmap of grad": lambda f: jax.vmap(jax.grad(f)),
    "jit of vmap of grad": lambda f: jax.jit(jax.vmap(jax.grad(f))),
    "jit of jvp": lambda f: jax.jit(forward(f)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_gradient_is_the_documented_slope_at_kinks_too(name, mode, x64):
    spike, slope = CASES[name]
    x = np.linspace(-3, 3, 97)  # sixteenths: threshold and every kink are on the grid
    np.testing.assert_allclose(MODES[mode](spike)(jnp.asarray(x)), slope(x), atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_the_slope_of_the_curve(name, x64):
    spike, _ = CASES[name]
    x, e = jnp.linspace(-3, 3, 97) + 0.011, 1e-5  # no kink within e
    slope = (spike.curve(x + e) - spike.curve(x - e)) / (2 * e)
    np.testing.assert_allclose(reverse(spike)(x), slope, atol=2e-8)
    assert float(slope.max()) > 0.1


@pytest.mark.parametrize("name", [name for name in BINARY if "straight" not in name])
def test_curve_rises_from_0_to_1_as_the_step_does(name, x64):
    curve = BINARY[name][0].curve(jnp.linspace(-1e4, 1e4, 4001))
    np.testing.assert_allclose(curve[jnp.array([0, 2000, -1])], [0, 0.5, 1], atol=1e-4)
    assert (jnp.diff(curve) >= 0).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", BINARY)
def test_binary_fires_from_equality_on(name, dtype):
    x = jnp.array([-3, -1e-3, -0.0, 0, 1e-3, 3], dtype)
    s = BINARY[name][0](x)
    assert s.dtype == x.dtype
    np.testing.assert_array_equal(s, np.array([0, 0, 1, 1, 1, 1], s.dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", TERNARY)
def test_ternary_fires_from_equality_on_both_sides(name, dtype):
    u = jnp.array([-3, -V_TH, -0.7, 0, 0.7, V_TH, 3], dtype)
    s = TERNARY[name][0](u)
    assert s.dtype == u.dtype
    np.testing.assert_array_equal(s, np.array([-1, -1, 0, 0, 0, 1, 1], s.dtype))


@pytest.mark.parametrize("name", BINARY)
def test_a_number_of_python_is_taken_too(name):
    spike, slope = BINARY[name]
    assert float(spike(0.25)) == 1 and float(spike(-0.25)) == 0
    np.testing.assert_allclose(jax.grad(spike)(0.1), slope(0.1), rtol=1e-5)


def test_own_step_is_the_forward_value():
    spike = surrogate.from_curve(own_curve, lambda x: 1.0 * (x > 0))
    np.testing.assert_array_equal(spike(jnp.array([-1.0, 0.0, 1.0])), [0, 0, 1])
    assert spike.curve is own_curve


DEFAULTS = {
    "atan": {"alpha": 2.0},
    "sigmoid": {"alpha": 4.0},
    "rectangle": {"width": 1.0},
    "triangle": {"width": 1.0},
    "straight_through": {"lo": -0.5, "hi": 0.5},
}


@pytest.mark.parametrize("name", surrogate.NAMED)
def test_equal_settings_are_one_object_however_spelled(name):
    make, default = surrogate.NAMED[name], DEFAULTS[name]
    numbers = ",".join(map(str, default.values()))
    spellings = [
        make(),
        make(*default.values()),
        make(**default),
        surrogate.by_name(name),
        surrogate.by_name(f"{name}()"),
        surrogate.by_name(f"{name}({numbers})"),
    ]
    assert {id(spike) for spike in spellings} == {id(make())}
    assert make(*(3 * n for n in default.values())) is not make()


def test_by_name_reads_numbers():
    assert surrogate.by_name("atan(5)") is surrogate.atan(5.0)
    assert surrogate.by_name("rectangle(0.25)") is surrogate.rectangle(0.25)
    two = surrogate.by_name("straight_through(-1, 2e0)")
    assert two is surrogate.straight_through(-1.0, 2.0)


@pytest.mark.parametrize(
    "name",
    ["", "relu", "atan(", "atan)", "atan(2", "atan(x)", "atan(1,2)", "atan(-1)"]
    + ["atan(2))", "straight_through(1,1)", "__name__", "from_curve"],
)
def test_by_name_names_what_it_got_and_what_it_knows(name):
    with pytest.raises(ValueError, match="got " + re.escape(repr(name))) as error:
        surrogate.by_name(name)
    assert all(known in str(error.value) for known in surrogate.NAMED)


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
@pytest.mark.parametrize(
    "make",
    [surrogate.atan, surrogate.sigmoid, surrogate.rectangle, surrogate.triangle]
    + [functools.partial(surrogate.ternary, surrogate.atan())],
)
def test_a_number_that_is_not_positive_is_refused(make, value):
    with pytest.raises(ValueError, match=f"got {value}, expected a number > 0"):
        make(value)


@pytest.mark.parametrize("lo, hi", [(1, 1), (1, 0)])
def test_straight_through_refuses_an_empty_interval(lo, hi):
    with pytest.raises(ValueError, match=f"got {lo}, {hi}, expected lo < hi"):
        surrogate.straight_through(lo, hi)


# reference name: the factory and what its alpha means there
REFERENCE = {
    "ATan": surrogate.atan,
    "Sigmoid": surrogate.sigmoid,
    "Rect": lambda alpha: surrogate.rectangle(1 / alpha),
    "PiecewiseQuadratic": lambda alpha: surrogate.triangle(1 / alpha),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_slope_equals_the_reference(name, parity, x64):
    data = parity("prim_neurons_a")
    keys = [k for k in data if k.startswith(f"surrogate/{name}(")]
    assert len(keys) == 2
    x = jnp.asarray(data["surrogate_grid"], jnp.float64)
    for key in keys:
        spike = REFERENCE[name](float(re.search(r"alpha=(.*)\)", key)[1]))
        expected = data[key]
        tolerance = 1e-9 * abs(expected).max()
        np.testing.assert_allclose(
            reverse(spike)(x), expected, rtol=0, atol=tolerance, err_msg=key
        )
