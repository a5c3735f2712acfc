"""What is not understood is named, and never proven."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from a2os2a_jax.analysis.audit import certify, certify_jaxpr

X = jax.ShapeDtypeStruct((4, 3), jnp.float32)


def printed(x):
    jax.debug.print("x {x}", x=x)
    return x


def told(x):
    jax.debug.callback(lambda x: None, x)
    return x


def printed_in_a_branch(x):
    return lax.cond(x[0, 0] > 0, printed, lambda x: x, x)


def printed_in_a_loop(x):
    return lax.scan(lambda c, row: (c, printed(row)), 0, x)[1]


def printed_in_jit(x):
    jax.jit(printed)(x)  # nobody reads what it returns
    return x


def printed_from_parameters(x):
    jax.debug.print("nothing of data {x}", x=jnp.ones(3))
    return x


def kept(x):
    box = jax.new_ref(jnp.zeros(x.shape))
    box[...] = x
    return box[...]


UNKNOWN = {
    "sort": (lambda x: jnp.sort(x), "no rule for this primitive"),
    "fft": (lambda x: jnp.fft.fft(x).real, "no rule"),
    "complex": (lambda x: x + 1j, "no rule for complex numbers"),
    "bits": (
        lambda x: lax.bitcast_convert_type(x, jnp.int32),
        "reads the bits of a number as another's",
    ),
    "pure_callback": (
        lambda x: jax.pure_callback(lambda x: x, X, x),
        "calls back to the host",
    ),
    "print": (printed, "has side effects"),
    "debug callback": (told, "has side effects"),
    "print in a branch": (printed_in_a_branch, "has side effects"),
    "print in a loop": (printed_in_a_loop, "has side effects"),
    "print that nobody reads": (printed_in_jit, "has side effects"),
    "print of constants": (printed_from_parameters, "has side effects"),
    "mutable arrays": (kept, "has side effects"),
    "loop": (
        lambda x: lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c + x, x),
        "a loop whose bound depends on data",
    ),
    "long loop": (
        lambda x: lax.while_loop(
            lambda c: c[0] < 10**6, lambda c: (c[0] + 1, c[1] + x), (0, x)
        )[1],
        "a loop of more than 1024 rounds",
    ),
    "sort of nothing": (lambda x: x[:, :1] + jnp.sort(x[:0], 0).sum(), "no rule"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_understood_is_named(name):
    fn, why = UNKNOWN[name]
    report = certify(fn, X, params=())
    assert not report.addition_only and report.verdict == "not proven"
    assert why in str(report), str(report)
    assert any(o.source.startswith("test_bad_input.py:") for o in report.unknown)
    assert "NOT PROVEN" in report.summary()


def test_a_loop_whose_bound_is_a_parameter_is_named():
    def f(n, x):
        return lax.fori_loop(0, n, lambda _, c: c + x, x)

    report = certify(f, 3, X)
    assert report.verdict == "not proven"
    assert "values that are not known ahead" in str(report)


def test_a_long_loop_with_a_known_bound_passes():
    def f(x):
        return lax.fori_loop(0, 10**6, lambda _, c: c + x, x)

    report = certify(f, X, params=())  # a scan
    assert report.addition_only and report.counts["addition"] == 12 * 10**6


BAD = {
    "params beyond": (dict(params=(1,)), "params is"),
    "params negative": (dict(params=(-1,)), "params is"),
    "params by name": (dict(params=("x",)), "params is"),
    "params half": (dict(params=0.5), "params is"),
    "allow a word": (dict(allow="input"), "allow is 'input'"),
    "allow another": (dict(allow=("weights",)), "allow is"),
    "allow nothing": (dict(allow=None), "allow is None"),
}


@pytest.mark.parametrize("name", BAD)
def test_options_that_do_not_exist(name):
    options, text = BAD[name]
    with pytest.raises(ValueError, match=text):
        certify(lambda x: x, X, **options)
    closed = jax.make_jaxpr(lambda x: x)(X)
    with pytest.raises(ValueError, match=text):
        certify_jaxpr(closed, **options)


@pytest.mark.parametrize(
    "bad", ["text", object(), np.array(["text"])], ids=["str", "object", "array"]
)
def test_arguments_that_are_no_arrays(bad):
    with pytest.raises(ValueError, match="among the arguments"):
        certify(lambda x, y: x, X, bad)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="cannot trace"):
        certify(lambda x: x @ x, X)
    with pytest.raises(ValueError, match="cannot trace"):
        certify(lambda x, y: x, X)
    with pytest.raises(ValueError, match="cannot trace"):
        certify(lambda x: x if x[0, 0] > 0 else -x, X)


def test_variables_that_do_not_match_the_model():
    model = nn.Dense(5)
    kernel = jax.ShapeDtypeStruct((2, 5), jnp.float32)
    for params in ({"kernel": kernel}, {}):
        with pytest.raises(ValueError, match="cannot trace.*Scope"):
            certify(lambda v, x: model.apply(v, x), {"params": params}, X)


def test_numbers_and_lists_are_arguments_too():
    report = certify(lambda w, x, b: x[0] * w + b, 2, [X], True)
    assert report.refused and len(report.inputs) == 2


@pytest.mark.parametrize(
    ("args", "options"), [((), {}), ((X,), {}), ((X, X), dict(params=(0, 1)))]
)
def test_where_no_argument_is_data_nothing_is_proven(args, options):
    report = certify(
        lambda *a: jnp.ones(3) if not a else a[0] * a[-1], *args, **options
    )
    assert report.verdict == "not proven" and not report.addition_only
    assert "expected params=()" in str(report)


def test_a_report_needs_no_names():
    closed = jax.make_jaxpr(lambda w, x: x @ w.T)(X, X)
    report = certify_jaxpr(closed, params=(0,), allow=("input",))
    assert report.addition_only and report.allowed
    assert not certify_jaxpr(closed, allow=("input",)).addition_only
    assert not certify_jaxpr(closed.jaxpr, params=(0,)).addition_only
