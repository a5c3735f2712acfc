import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.functional import attention

ORDERS = ("qk_v", "q_kv")
# name: shape of q, number of keys; arrays are [..., N, heads, d]
SHAPES = {
    "no batch": ((5, 2, 3), 5),
    "batch": ((2, 5, 2, 3), 5),
    "batch, time": ((2, 3, 4, 1, 6), 4),
    "more keys than queries": ((2, 3, 2, 4), 7),
    "one query": ((2, 1, 2, 4), 6),
}
SHAPE = (2, 6, 3, 4)


def draw(shape, keys=None, *, integer_k=True, seed=0, dtype=jnp.float32):
    """Q in {0, 1}, K >= 0, V in {-1, 0, 1}."""
    rng = np.random.default_rng(seed)
    kv_shape = (*shape[:-3], keys or shape[-3], *shape[-2:])
    q = rng.integers(0, 2, shape)
    k = rng.integers(-3, 9, kv_shape).clip(0)
    if not integer_k:
        k = k * rng.uniform(0.5, 1.5, kv_shape)
    v = rng.integers(-1, 2, kv_shape)
    return tuple(jnp.asarray(a, dtype) for a in (q, k, v))


def heads(q, k, v):
    """Each (q, k, v) of one batch entry and head, [tokens, d], and where it belongs."""
    q, k, v = map(np.asarray, (q, k, v))
    for at in np.ndindex(*q.shape[:-3], q.shape[-2]):
        *batch, head = at
        yield (
            (*batch, slice(None), head),
            *(a[(*batch, ..., head, slice(None))] for a in (q, k, v)),
        )


def by_loops(q, k, v):
    """The product of eq. A2OS2A, one number at a time."""
    out = np.zeros(q.shape)
    for at, q1, k1, v1 in heads(q, k, v):
        for n, d, m, e in np.ndindex(*q1.shape, *v1.shape):
            out[at][n, e] += q1[n, d] * k1[m, d] * v1[m, e]
    return out


def by_additions_qk_v(q, k, v):
    """(Q K^T) V by selecting, adding and subtracting."""
    out = np.zeros(q.shape)
    for at, q1, k1, v1 in heads(q, k, v):
        for n, m in np.ndindex(len(q1), len(k1)):
            score = sum(k1[m, q1[n] == 1].tolist())
            out[at][n, v1[m] == 1] += score
            out[at][n, v1[m] == -1] -= score
    return out


def by_additions_q_kv(q, k, v):
    """Q (K^T V) by selecting, adding and subtracting."""
    out = np.zeros(q.shape)
    for at, q1, k1, v1 in heads(q, k, v):
        context = np.zeros((k1.shape[1], v1.shape[1]))
        for m in range(len(k1)):
            context[:, v1[m] == 1] += k1[m][:, None]
            context[:, v1[m] == -1] -= k1[m][:, None]
        for n in range(len(q1)):
            out[at][n] = sum(context[q1[n] == 1], np.zeros(v1.shape[1]))
    return out


@pytest.mark.parametrize("order", attention.ORDERS)
@pytest.mark.parametrize("name", SHAPES)
def test_product_equals_loops_over_every_index(name, order):
    q, k, v = draw(*SHAPES[name])
    out = attention.a2os2a(q, k, v, order)
    assert out.dtype == jnp.float32 and out.any()
    np.testing.assert_array_equal(out, by_loops(q, k, v))


@pytest.mark.parametrize("by_additions", [by_additions_qk_v, by_additions_q_kv])
@pytest.mark.parametrize("order", ORDERS)
def test_on_its_alphabets_the_product_needs_additions_alone(order, by_additions, x64):
    for integer_k in True, False:
        qkv = draw((2, 5, 2, 4), 6, integer_k=integer_k, dtype=jnp.float64)
        expected = by_additions(*qkv)
        np.testing.assert_allclose(
            attention.a2os2a(*qkv, order),
            expected,
            rtol=0,
            atol=0 if integer_k else 1e-12,
        )


def test_orders_agree_to_rounding_with_their_gradients(x64):
    qkv = draw(SHAPE, integer_k=False, dtype=jnp.float64)
    weight = jax.random.normal(jax.random.key(0), SHAPE, jnp.float64)
    out, gradients = zip(
        *(
            jax.value_and_grad(
                lambda q, k, v, order=order: (
                    attention.a2os2a(q, k, v, order) * weight
                ).sum(),
                argnums=(0, 1, 2),
            )(*qkv)
            for order in ORDERS
        ),
        strict=True,
    )
    np.testing.assert_allclose(out[0], out[1], rtol=0, atol=1e-12)
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * abs(one).max())
        assert abs(one).max() > 1


def test_orders_are_equal_for_integer_keys():
    qkv = draw((4, 32, 4, 16))
    out = [attention.a2os2a(*qkv, order) for order in ORDERS]
    np.testing.assert_array_equal(*out)
    assert abs(out[0]).max() > 256  # beyond bfloat16


@pytest.mark.parametrize(
    "tokens, head_dim, order",
    [(16, 16, "qk_v"), (15, 16, "qk_v"), (17, 16, "q_kv"), (196, 64, "q_kv")],
)
def test_auto_takes_qk_v_up_to_as_many_tokens_as_dimensions(tokens, head_dim, order):
    assert attention.resolve_order("auto", tokens, tokens, head_dim) == order
    assert all(
        attention.resolve_order(o, tokens, tokens, head_dim) == o for o in ORDERS
    )
    qkv = draw((tokens, 2, head_dim))

    def program(order):
        return str(jax.make_jaxpr(lambda *qkv: attention.a2os2a(*qkv, order))(*qkv))

    assert program("auto") == program(order) != program(*set(ORDERS) - {order})


@pytest.mark.parametrize("order", ORDERS)
def test_ssa_is_a2os2a_times_the_scale(order):
    qkv = draw(SHAPE)
    out = attention.a2os2a(*qkv, order)
    np.testing.assert_array_equal(attention.ssa(*qkv, order=order), out / 8)
    np.testing.assert_array_equal(attention.ssa(*qkv, 0.5, order), out / 2)


@pytest.mark.parametrize("order", ORDERS)
def test_permuted_queries_permute_and_permuted_keys_change_nothing(order):
    q, k, v = draw(SHAPE)
    shuffle = np.array([3, 5, 0, 2, 1, 4])
    out = attention.a2os2a(q, k, v, order)
    queries = attention.a2os2a(q[:, shuffle], k, v, order)
    np.testing.assert_array_equal(queries, out[:, shuffle])
    keys = attention.a2os2a(q, k[:, shuffle], v[:, shuffle], order)
    np.testing.assert_array_equal(keys, out)
    assert (attention.a2os2a(q, k[:, shuffle], v, order) != out).any()


@pytest.mark.parametrize("axis", [0, 2], ids=["batch", "heads"])
@pytest.mark.parametrize("order", ORDERS)
def test_entries_of_the_batch_and_heads_are_independent(order, axis):
    qkv = draw(SHAPE)
    out = attention.a2os2a(*qkv, order)
    for i in range(SHAPE[axis]):
        alone = attention.a2os2a(*(jnp.take(a, jnp.array([i]), axis) for a in qkv))
        np.testing.assert_array_equal(alone, jnp.take(out, jnp.array([i]), axis))


@pytest.mark.parametrize("order", ORDERS)
def test_batch_axes_are_vmap(order):
    qkv = draw((2, 3, 4, 2, 5))
    one = functools.partial(attention.a2os2a, order=order)
    np.testing.assert_array_equal(one(*qkv), jax.vmap(jax.vmap(one))(*qkv))


@pytest.mark.parametrize(
    "dtypes, expected",
    [
        (["bfloat16"] * 3, "float32"),
        (["float16"] * 3, "float32"),
        (["float32"] * 3, "float32"),
        (["bfloat16", "float32", "bfloat16"], "float32"),
        (["float32", "float64", "float32"], "float64"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_product_has_at_least_float32(order, dtypes, expected, x64):
    qkv = [a.astype(dtype) for a, dtype in zip(draw(SHAPE), dtypes, strict=True)]
    for product in attention.a2os2a, attention.ssa:
        assert product(*qkv, order=order).dtype == expected


@pytest.mark.parametrize(
    "order, shape", [("qk_v", (1, 1)), ("q_kv", (257, 257))], ids=ORDERS
)
def test_bfloat16_sums_are_taken_in_float32(order, shape):
    d = shape[1]  # 257 ones are summed last, which bfloat16 cannot hold
    keys = 1 if order == "q_kv" else 257
    q, k, v = (jnp.ones((n, 1, d), jnp.bfloat16) for n in (1, keys, keys))
    np.testing.assert_array_equal(
        attention.a2os2a(q, k, v, order), np.full((1, 1, d), 257)
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(2, 4, 16, 4, 16), (3, 2, 49, 8, 8)])
def test_bfloat16_is_compiled_for_every_cpu(order, shape):
    # batches of time and heads, which some layouts of a product do not get over
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.bernoulli(key, 0.3, shape) for key in keys)
    run = jax.jit(functools.partial(attention.a2os2a, order=order))
    out = run(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    expected = attention.a2os2a(*(x.astype(jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(out, expected, rtol=1e-2)


@pytest.mark.parametrize(
    "q, k, v",
    [
        ((6, 4), (6, 4), (6, 4)),
        ((2, 6, 3, 4), (2, 6, 3, 4), (2, 5, 3, 4)),
        ((2, 6, 3, 4), (2, 6, 3, 5), (2, 6, 3, 5)),
        ((2, 6, 3, 4), (2, 6, 1, 4), (2, 6, 1, 4)),
        ((2, 6, 3, 4), (1, 6, 3, 4), (1, 6, 3, 4)),
        ((2, 6, 3, 4), (6, 3, 4), (6, 3, 4)),
    ],
    ids=["rank", "values", "head dimension", "heads", "batch", "batch axes"],
)
@pytest.mark.parametrize("product", [attention.a2os2a, attention.ssa])
def test_shapes_that_do_not_fit_are_refused_by_name(product, q, k, v):
    message = f"{product.__name__}: .*{re.escape(str(q))}.*{re.escape(str(k))}"
    with pytest.raises(ValueError, match=message):
        product(jnp.zeros(q), jnp.zeros(k), jnp.zeros(v))


@pytest.mark.parametrize("product", [attention.a2os2a, attention.ssa])
def test_an_unknown_order_is_refused(product):
    message = f"{product.__name__}: order is 'kv_q', expected one of .*'auto', 'qk_v'"
    with pytest.raises(ValueError, match=message):
        product(*draw(SHAPE), order="kv_q")


def test_auto_counts_queries_and_keys():
    # one query over 100 keys: 2·100·d = 2000 additions, against 101 d² = 10100
    assert attention.resolve_order("auto", 1, 100, 10) == "qk_v"
    assert attention.resolve_order("auto", 100, 100, 10) == "q_kv"


# --- SDSA -----------------------------------------------------------------------------


def test_sdsa_by_loops():
    q, k, v = (np.abs(x) for x in draw((2, 5, 2, 3)))
    seen = []

    def fire(sums):
        seen.append(sums)
        return (sums >= 2).astype(sums.dtype)

    got = attention.sdsa(q, np.minimum(k, 1), v, fire)
    want = np.zeros(q.shape)
    for at, q1, k1, v1 in heads(q, np.minimum(k, 1), v):
        for j in range(3):
            count = sum(k1[n, j] * v1[n, j] for n in range(5))
            want[at][:, j] = q1[:, j] * (count >= 2)
    np.testing.assert_array_equal(got, want)
    assert seen[0].shape == (2, 1, 2, 3) and 0.05 < got.mean() < 0.6


def test_sdsa_counts_in_float32_and_returns_spikes_of_the_querys_dtype():
    ones = jnp.ones((257, 1, 1), jnp.bfloat16)  # 257 cannot be held in bfloat16
    seen = []
    out = attention.sdsa(ones, ones, ones, lambda s: seen.append(s) or s * 0 + 1)
    assert (out.dtype, seen[0].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(seen[0], [[[257]]])
    np.testing.assert_array_equal(out, np.ones((257, 1, 1)))


def test_sdsa_refuses_shapes_that_do_not_fit():
    q, k = jnp.zeros((2, 6, 3, 4)), jnp.zeros((2, 5, 3, 4))
    with pytest.raises(ValueError, match=r"sdsa: .*\(2, 6, 3, 4\).*\(2, 5, 3, 4\)"):
        attention.sdsa(q, k, q, lambda s: s)


# --- scales and Shiftmax --------------------------------------------------------------


def test_token_scales_by_hand():
    assert attention.token_scale("sqrt", 16) == 0.25
    got = {n: 1 / attention.token_scale("pow2", n) for n in (1, 2, 3, 5, 6, 33, 50)}
    assert got == {1: 1, 2: 2, 3: 4, 5: 4, 6: 8, 33: 32, 50: 64}
    with pytest.raises(ValueError, match="got 'mean', expected one of"):
        attention.token_scale("mean", 4)


def test_shiftmax_by_hand():
    rows = jnp.array([[0.0, 0, 0, 0], [1, 0, 0, 0], [7, 0, -9, 3], [0.4, 0.6, 0, -5]])
    got = attention.shiftmax(rows)
    by_hand = [
        [1 / 4] * 4,  # sum 4: ceil(log2) = 2
        [1 / 4, 1 / 8, 1 / 8, 1 / 8],  # sum 5: 3
        [1 / 2, 2**-8, 2**-17, 2**-5],  # sum 137 + 1/512: 8
        [1 / 4, 1 / 2, 1 / 4, 2**-7],  # rounded to 0, 1, 0, -5; sum 4 + 1/32: 3
    ]
    by_hand[3] = [x / 2 for x in by_hand[3]]
    np.testing.assert_array_equal(got, by_hand)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shiftmax_gives_powers_of_two_that_sum_to_at_most_one(dtype):
    draws = np.random.default_rng(0).normal(0, 40, (200, 33))
    weights = attention.shiftmax(jnp.asarray(draws, dtype))
    assert weights.dtype == jnp.float32
    mantissa, _ = np.frexp(np.asarray(weights[weights > 0]))
    assert (mantissa == 0.5).all()
    total = np.asarray(weights).sum(-1)
    assert (total >= 0.5).all() and (total <= 1).all()


@pytest.mark.parametrize("n", [1, 2, 33, 64, 65])
def test_shiftmax_is_exact_down_to_the_smallest_power(n):
    """Against numpy's ldexp and frexp, which move exponents."""
    rows = np.random.default_rng(n).integers(-12, 3, (300, n)).astype(np.float32)
    rows[:128] = -200  # one weight and one other: sums as any order gives them
    rows[:128, 0] = np.arange(0, -128, -1)
    rows[:128, n // 2] = 0
    r = np.maximum(rows - rows.max(-1, keepdims=True), -126).astype(int)
    total = np.ldexp(np.float32(1), r).sum(-1, keepdims=True)
    fraction, exponent = np.frexp(total)
    want = np.ldexp(1.0, (r - exponent + (fraction == 0.5)).astype(int))
    # The smallest is left out, and what it would have had below 2^-126.
    want = np.where((r > -126) & (want >= 2.0**-126), want, 0)
    got = np.asarray(jax.jit(attention.shiftmax)(rows))
    np.testing.assert_array_equal(np.where(got >= 2.0**-126, got, 0), want)


def test_shiftmax_needs_selects_and_products_with_powers_of_two_alone():
    text = str(jax.make_jaxpr(lambda x: attention._shiftmax(x)[0])(jnp.zeros((2, 9))))
    names = set(re.findall(r" = ([a-z_0-9]+)\[?", text))
    assert "mul" in names and "gt" in names
    assert not names & {"div", "exp", "exp2", "log", "pow", "integer_pow"}
    assert "bitcast" not in text


def test_shiftmax_has_the_slope_of_a_softmax_with_base_2(x64):
    scores = jnp.array([[3.0, 1, -2, 0], [0, 0, 5, 1]])  # integers: nothing is rounded
    weights = attention.shiftmax(scores)
    share = jax.nn.softmax(scores * np.log(2))
    got = jax.vmap(jax.jacfwd(attention.shiftmax))(scores)
    for row in range(2):
        soft = np.log(2) * (np.eye(4) - share[row][None, :]) * weights[row][:, None]
        np.testing.assert_allclose(got[row], soft, atol=1e-12)
    reverse = jax.vmap(jax.jacrev(attention.shiftmax))(scores)
    np.testing.assert_allclose(got, reverse, atol=1e-12)


def test_shift_attention_by_loops():
    q, k, v = draw((2, 5, 2, 3), 7, integer_k=False)
    got = attention.shift_attention(q, k, v)
    want = np.zeros(q.shape)
    for at, q1, k1, v1 in heads(q, k, v):
        want[at] = attention.shiftmax(jnp.asarray(q1 @ k1.T)) @ v1
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert 0.3 < np.abs(got).max() <= 1
