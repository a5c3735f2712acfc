"""A product stays one however it is written: each disguise is found, where it is."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback, pallas
from jax.extend.core import Primitive

from a2os2a_jax.analysis.audit import certify

FILE = "test_disguises.py"
DISGUISES = []
TABLE = np.outer(np.arange(16.0), np.arange(16.0)).astype(np.float32)
X = jax.ShapeDtypeStruct((4, 4), jnp.float32)


def disguise(fn):
    """fn(a, b) of two arrays [4, 4] of data."""
    DISGUISES.append(fn)
    return fn


def whole(a):
    return jnp.round(a).astype(jnp.int32)


# ---- programs in parameters, foreign code, and what rounding decides


@disguise
def squares_of_entries(a, b):
    def square(v):
        return v.at[np.arange(4)].apply(lambda u: u * u)

    return (square(a + b) - square(a - b)) / 4


@disguise
def sums_that_are_products(a, b):
    at = np.arange(4)[:, None]
    dims = lax.ScatterDimensionNumbers((1,), (0,), (0,))
    return lax.scatter_mul(a, at, b, dims)


@disguise
def applied_in_a_loop(a, b):
    return lax.fori_loop(0, 3, lambda i, c: c.at[i].apply(jnp.sin), a) + b


@disguise
def random_weights(a, b):
    w = lax.rng_uniform(jnp.float32(0), jnp.float32(1), (4, 4))
    return (a > 0).astype(a.dtype) @ jnp.square(w) + b


@disguise
def foreign_weights(a, b):
    w = jax.ffi.ffi_call("sensor", jax.ShapeDtypeStruct((4, 4), a.dtype))()
    return (a > 0).astype(a.dtype) @ w + b


@disguise
def a_branch_that_rounding_takes(a, b):
    y = jnp.ones(()) + 2.0**-30  # in float32 it is 1
    return lax.cond(y > 1, lambda: a + b, lambda: a * b)


@disguise
def a_choice_that_rounding_makes(a, b):
    y = jnp.ones(()) + 2.0**-30
    return jnp.where(y > 1, (a > 0).astype(a.dtype), a) * b


@disguise
def a_choice_that_precision_makes(a, b):
    y = lax.reduce_precision(jnp.full((), 1.25), 8, 0)
    return lax.cond(y == 1.25, lambda: a + b, lambda: a * b)


@disguise
def a_choice_that_nan_makes(a, b):
    y = jnp.zeros(()) * jnp.inf
    return lax.cond(y == 0, lambda: a + b, lambda: a * b)


@disguise
def a_constant_that_rounding_makes(a, b):
    big = jnp.full((), 3 * 2.0**30)
    c = big + 150 + 150 + 212 - big  # 512, and 768 as float32 has it
    return (a + b) * (c / 512)


@disguise
def a_constant_summed_up(a, b):
    c = jnp.full(10, 0.1).sum()  # 1, or next to it
    return (a + b) * c


# ---- those that the certificate was promised to see


@disguise
def sum_of_logarithms(a, b):
    return jnp.exp(jnp.log(a) + jnp.log(b))


@disguise
def difference_of_squares(a, b):
    return ((a + b) ** 2 - (a - b) ** 2) / 4


@disguise
def product_of_a_stack(a, b):
    return jnp.stack([a, b]).prod(0)


@disguise
def cumulative_product(a, b):
    return lax.cumprod(jnp.stack([a, b]), 0)[1]


@disguise
def table_gathered(a, b):
    return jnp.asarray(TABLE)[whole(a), whole(b)]


@disguise
def table_taken(a, b):
    return jnp.take(jnp.asarray(TABLE).ravel(), 16 * whole(a) + whole(b))


@disguise
def table_sliced(a, b):
    i, j = whole(a)[0, 0], whole(b)[0, 0]
    return lax.dynamic_slice(jnp.asarray(TABLE), (i, j), (1, 1))


@disguise
def table_of_data(a, b):
    return jnp.take_along_axis(a, whole(b), 1)


@disguise
def table_written(a, b):
    return lax.dynamic_update_slice(a, a[:1, :1], (whole(b)[0, 0], 0))


@disguise
def bits_of_floats(a, b):
    i, j = (lax.bitcast_convert_type(x, jnp.int32) for x in (a, b))
    return lax.bitcast_convert_type(i + j - 0x3F800000, jnp.float32)


@disguise
def additions_until_data_says_so(a, b):
    def more(c):
        return c[0] < b[0, 0]

    return lax.while_loop(more, lambda c: (c[0] + 1, c[1] + a), (0.0, a))[1]


@disguise
def additions_up_to_data(a, b):
    return lax.fori_loop(0, whole(b)[0, 0], lambda _, c: c + a, a)


@disguise
def additions_up_to_data_each(a, b):
    times = jax.vmap(lambda x, n: lax.fori_loop(0, n, lambda _, c: c + x, x))
    return times(a[0], whole(b)[0])


@disguise
def inside_custom_jvp(a, b):
    @jax.custom_jvp
    def f(a, b):
        return a * b

    f.defjvp(lambda p, t: (f(*p), t[0]))
    return f(a, b)


@disguise
def inside_custom_vjp(a, b):
    @jax.custom_vjp
    def f(a, b):
        return a * b

    f.defvjp(lambda a, b: (f(a, b), None), lambda _, g: (g, g))
    return f(a, b)


@disguise
def inside_pallas(a, b):
    def kernel(a_ref, b_ref, out_ref):
        out_ref[...] = a_ref[...] * b_ref[...]

    return pallas.pallas_call(kernel, out_shape=X, interpret=True)(a, b)


@disguise
def inside_a_callback(a, b):
    return jax.pure_callback(lambda a, b: a * b, X, a, b)


@disguise
def inside_an_ordered_callback(a, b):
    return io_callback(lambda a, b: a * b, X, a, b, ordered=True)


@disguise
def inside_a_callback_nobody_reads(a, b):
    io_callback(lambda a, b: None, None, a, b)
    return a


# ---- inside of other programs


@disguise
def inside_jit_of_jit(a, b):
    return jax.jit(lambda a: jax.jit(lambda x: x * b)(a))(a)


@disguise
def inside_remat(a, b):
    return jax.checkpoint(lambda a, b: a * b)(a, b)


@disguise
def inside_a_scan(a, b):
    return lax.scan(lambda c, row: (c, c * row), a[0], b)[1]


@disguise
def carried_by_a_scan(a, b):
    # The first round multiplies by 1, and the carry is a spike only then.
    return lax.scan(lambda c, row: (c * row, None), jnp.ones(4), a)[0]


@disguise
def late_in_a_scan(a, b):
    # What is multiplied is 0 until the fifth round.
    def step(c, row):
        return (row, *c[:-1]), c[-1] * row

    return lax.scan(step, (jnp.zeros(4),) * 5, a)[1]


@disguise
def inside_a_while_of_three_rounds(a, b):
    return lax.fori_loop(0, 3, lambda _, c: c * b, a)


@disguise
def late_in_a_while(a, b):
    def step(c):
        i, x, y = c
        return i + 1, y, lax.cond(i == 6, lambda: x * b, lambda: y)

    return lax.while_loop(lambda c: c[0] < 8, step, (0, a, b))[2]


@disguise
def inside_a_branch(a, b):
    return lax.cond(a[0, 0] > 0, lambda: a * b, lambda: a)


@disguise
def inside_one_of_many_branches(a, b):
    branches = [lambda: a, lambda: b, lambda: a @ b]
    return lax.switch(whole(a)[0, 0], branches)


@disguise
def inside_vmap(a, b):
    return jax.vmap(jax.vmap(lambda x, y: x * y))(a, b)


@disguise
def inside_a_reduction(a, b):
    total = lax.reduce(a, np.float32(1), lambda x, y: x * y + y * 0, (0,))
    return total + b[0]


@disguise
def inside_a_window(a, b):
    return lax.reduce_window(a, np.float32(1), lax.mul, (2, 2), (1, 1), "SAME")


@disguise
def under_the_name_of_another(a, b):
    add = Primitive("add")  # whose lowering may be anything
    add.def_abstract_eval(lambda x, y: x)
    return add.bind(a, b)


@disguise
def inside_a_custom_batching_rule(a, b):
    @jax.custom_batching.custom_vmap
    def f(a, b):
        return a * b

    f.def_vmap(lambda size, batched, a, b: (a * b, True))
    return f(a, b)


@disguise
def inside_a_solver(a, b):
    def solve(_, y):
        return y * b

    return lax.custom_linear_solve(lambda x: x, a, solve, symmetric=True)


@disguise
def inside_a_derivative(a, b):
    return jax.jvp(lambda x: x * x, (a,), (b,))[1]


@disguise
def inside_choices(a, b):
    return jnp.where(a > 1, jnp.where(b > 0, a * b, a), jnp.where(b < 0, 0, b))


# ---- in other numbers


@disguise
def complex_square(a, b):
    return ((a + 1j * b) ** 2).imag


@disguise
def complex_product(a, b):
    return (lax.complex(a, b) * lax.complex(b, a)).real


@disguise
def complex_size(a, b):
    return abs(lax.complex(a, b))


@disguise
def integers(a, b):
    return whole(a) * whole(b)


@disguise
def integers_that_wrap(a, b):
    return a.astype(jnp.uint8) * b.astype(jnp.uint8)


@disguise
def wrapped_spikes(a, b):
    # As bytes 3 * 86 is 2, so this is no spike, whatever its interval says.
    s = jnp.full_like(a, 3, jnp.uint8) + whole(a).astype(jnp.uint8)
    return s.astype(jnp.float32) * b


@disguise
def squared_twice(a, b):
    return a**3


@disguise
def integer_division(a, b):
    return whole(a) // 3


@disguise
def negative_power(a, b):
    return a / b**-1


# ---- other primitives


@disguise
def matrices(a, b):
    return jnp.einsum("ij,jk->ik", a, b)


@disguise
def outer(a, b):
    return jnp.outer(a[0], b[0])


@disguise
def convolution(a, b):
    return jnp.convolve(a[0], b[0])


@disguise
def image_convolution(a, b):
    return lax.conv(a[None, None], b[None, None], (1, 1), "SAME")


@disguise
def quotient(a, b):
    return a / (1 / b)


@disguise
def remainder(a, b):
    return a - a % b


@disguise
def cosines(a, b):
    return jnp.cos(a - b) - jnp.cos(a + b)


@disguise
def logarithm_of_sums(a, b):
    return jnp.logaddexp(a, b)


@disguise
def cumulative_logarithm(a, b):
    return lax.cumlogsumexp(jnp.stack([a, b]))


@disguise
def soft_threshold(a, b):
    return jax.nn.softplus(a)


@disguise
def power_of_two_of_reals(a, b):
    return jnp.exp2(a)


@disguise
def power_of_three(a, b):
    return 3.0 ** jnp.round(a)


@disguise
def data_to_the_power_of_data(a, b):
    return a**b


@disguise
def hypotenuse(a, b):
    return jnp.hypot(a, b)


@disguise
def between_points(a, b):
    return jnp.interp(a, jnp.arange(4.0), b[0])


@disguise
def polynomial(a, b):
    return jnp.polyval(jnp.array([1.0, 0.5, 2.0]), a)


@disguise
def lerp(a, b):
    return a + (b - a) * a


@disguise
def sorting(a, b):
    return jnp.sort(a)


@disguise
def best_of(a, b):
    return lax.top_k(a, 2)[0]


@disguise
def prefix_product(a, b):
    return lax.associative_scan(jnp.multiply, jnp.stack([a, b]))


@disguise
def scattered(a, b):
    return a.at[jnp.array([0, 1])].multiply(b[:2])


@disguise
def scattered_by_data(a, b):
    return a.at[whole(b)[0]].add(a)


@disguise
def segments(a, b):
    return jax.ops.segment_prod(a, jnp.array([0, 0, 1, 1]), 2)


@disguise
def counted_bits(a, b):
    return lax.population_count(whole(a))


@disguise
def leading_zeros(a, b):
    return lax.clz(whole(a))


@disguise
def exponents(a, b):
    fraction, exponent = jnp.frexp(a)
    return jnp.ldexp(fraction, exponent + whole(b))


@disguise
def linear_equations(a, b):
    return jnp.linalg.solve(a, b)


@disguise
def triangles(a, b):
    return lax.linalg.triangular_solve(a, b)


@disguise
def fourier(a, b):
    return jnp.fft.fft(a).real


@disguise
def random_numbers(a, b):
    key = jax.random.wrap_key_data(whole(a)[0, :2].astype(jnp.uint32))
    return jax.random.normal(key, (4, 4))


@disguise
def norm(a, b):
    return jnp.linalg.norm(a)


@disguise
def deviation(a, b):
    return a.std()


@disguise
def tenth(a, b):
    return 0.1 * a


@disguise
def third(a, b):
    return a / 3


@disguise
def mean_of_three(a, b):
    return a[:3].mean(0)


# ---- nearly spikes, nearly powers of two


@disguise
def spikes_of_two(a, b):
    return ((a > 0).astype(a.dtype) + (a > 1)) * b


@disguise
def spikes_scaled(a, b):
    return jnp.where(a > 0, 0.3, 0.0) * b


@disguise
def spikes_and_a_number(a, b):
    return jnp.where(a > 0, 1.0, jnp.where(b > 0, 0.0, a)) * b


@disguise
def spikes_padded_by_a_number(a, b):
    s = (a > 0).astype(a.dtype)
    return lax.pad(s, np.float32(0.7), ((0, 0, 0), (0, 0, 0)))[:, :4] * b


@disguise
def spikes_filled_by_a_number(a, b):
    s = (a > 0).astype(a.dtype)
    return s.at[:, jnp.array([0, 1, 2, 9])].get(mode="fill", fill_value=0.7) * b


@disguise
def spikes_added_up(a, b):
    return jnp.cumsum((a > 0).astype(a.dtype), 0) * b


@disguise
def ones_added_up(a, b):
    # 1, 2, 3, 4: the last is a power of two, the third is none.
    ones = (jnp.abs(whole(a)) >= 0).astype(a.dtype)
    return lax.cumsum(jnp.where(b > 0, 1.0, ones), 0) * b


@disguise
def negative_spikes_multiplied(a, b):
    # Of two the product is 1, so this is 1 or 3.
    s = (-(a[:2] > 0).astype(a.dtype)).prod(0)
    return (2 * s + 1) * b[0]


@disguise
def powers_added(a, b):
    return (jnp.exp2(jnp.round(a)) + 1) * b


@disguise
def large_numbers_that_cancel(a, b):
    # (2^60 + n) - 2^60 is n: 0 if it is done in floats.
    n = jnp.clip(whole(a), 0, 7)
    return ((n + 2**29) - 2**29).astype(a.dtype) * b


def loop(times, x, step):
    return lax.fori_loop(0, jnp.round(times).astype(int), lambda _, c: step(c), x)


def lines(fn):
    text, first = inspect.getsourcelines(fn)
    return {f"{FILE}:{n}" for n in range(first, first + len(text))}


@pytest.mark.parametrize("fn", DISGUISES, ids=lambda fn: fn.__name__)
def test_a_disguise_is_found_where_it_is(fn):
    report = certify(fn, X, X, params=())
    assert not report.addition_only
    assert report.verdict != "addition-only"
    places = {o.source for o in report.refused}
    assert places & lines(fn), (places, str(report))
    assert any(place in str(report) for place in places & lines(fn))
    # The input is no excuse for what is no product of it with parameters.
    if fn not in (tenth, third):
        assert not certify(fn, X, X, params=(), allow=("input",)).addition_only


def test_64_bits_do_not_hide_an_integer(x64):
    def large_numbers_that_cancel(a, b):
        n = jnp.clip(jnp.round(a), 0, 7).astype(jnp.int64)
        return ((n + 2**60) - 2**60).astype(a.dtype) * b

    report = certify(large_numbers_that_cancel, X, X, params=())
    assert [o.kind for o in report.refused] == ["integer product"]


def test_64_bits_do_not_hide_a_wrapped_integer(x64):
    def f(a, b):
        n = jnp.clip(jnp.round(a), 0).astype(jnp.int64)
        s = jnp.clip(n + 1, 0, 1)  # 0 for the largest n, which is followed by -2^63
        return jnp.where(s > 0, 1.0, a) * b

    assert not certify(f, X, X, params=()).addition_only


@pytest.mark.parametrize(
    "write",
    [
        lambda x, w: x * w,
        lambda x, w: x @ w,
        lambda x, w: jnp.exp(jnp.log(x) + w),
        lambda x, w: x / w,
        lambda x, w: lax.conv(x[None, None], w[None, None], (1, 1), "SAME"),
        lambda x, w: loop(w[0, 0], x, lambda c: c + x),
    ],
    ids=["mul", "dot", "exp", "div", "conv", "loop"],
)  # fmt: skip
def test_a_product_with_parameters_is_one_too(write):
    report = certify(lambda w, x: write(x, w), X, X)
    assert not report.addition_only
    assert {o.source.split(":")[0] for o in report.refused} == {FILE}


@pytest.mark.parametrize(
    "write",
    [
        lambda x, w: jnp.sum(w * w),
        lambda x, w: jnp.linalg.inv(w) + jnp.exp(w).astype(x.dtype),
        lambda x, w: loop(w[0, 0], w, lambda c: c * w) + x,
        lambda x, w: w[jnp.argmax(w, 0)] + x,
    ],
    ids=["product", "inverse", "loop", "look-up"],
)  # fmt: skip
def test_what_depends_on_parameters_alone_folds(write):
    report = certify(lambda w, x: write(x, w), X, X)
    assert report.addition_only, str(report)
    assert report.folds and "fold" in str(report)
