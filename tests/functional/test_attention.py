import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.analysis import audit
from a2os2a_jax.functional import attention, neurons, pooling, surrogate

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
# Functions of q, k, v and an order; and those without one, or with a neuron inside.
ORDERED = {
    name: getattr(attention, name)
    for name in ("a2os2a", "ssa", "sdsa3", "integer", "statten")
} | {"xnor": functools.partial(attention.xnor, alpha=0.5)}
OF_THREE = ORDERED | {
    "shift_attention": attention.shift_attention,
    "bsa": attention.bsa,
    "sdsa": functools.partial(attention.sdsa, fire=lambda sums: sums),
}


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


def binary(shape, keys=None, *, seed=0, dtype=jnp.float32):
    """Q, K, V in {0, 1}."""
    rng = np.random.default_rng(seed)
    kv_shape = (*shape[:-3], keys or shape[-3], *shape[-2:])
    shapes = shape, kv_shape, kv_shape
    return tuple(jnp.asarray(rng.integers(0, 2, s), dtype) for s in shapes)


def tokens(*rows):
    """One head, [N, 1, d]."""
    return jnp.array(rows, jnp.float32)[:, None]


def at_least(threshold):
    return lambda sums: (sums >= threshold).astype(sums.dtype)


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


@pytest.mark.parametrize("name, scale", [("ssa", 8), ("sdsa3", 8), ("integer", 2)])
@pytest.mark.parametrize("order", ORDERS)
def test_scaled_products_are_a2os2a_times_the_scale(order, name, scale):
    qkv, product = draw(SHAPE), getattr(attention, name)
    out = attention.a2os2a(*qkv, order)
    np.testing.assert_array_equal(product(*qkv, order=order), out / scale)
    np.testing.assert_array_equal(product(*qkv, 0.25, order), out / 4)


def test_integer_by_hand():
    q, k, v = tokens([2, 0], [1, 3]), tokens([1, 1], [0, 4]), tokens([1, 0], [2, 1])
    # scores [[2, 0], [4, 12]]; d = 2
    want = np.array([[2, 0], [4 + 24, 12]]) / np.sqrt(2)
    np.testing.assert_allclose(attention.integer(q, k, v)[:, 0], want, rtol=1e-6)
    np.testing.assert_allclose(  # counts over 4
        attention.integer(q / 4, k / 4, v / 4)[:, 0], want / 64, rtol=1e-6
    )


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
@pytest.mark.parametrize("name", OF_THREE)
def test_shapes_that_do_not_fit_are_refused_by_name(name, q, k, v):
    message = f"{name}: .*{re.escape(str(q))}.*{re.escape(str(k))}"
    with pytest.raises(ValueError, match=message):
        OF_THREE[name](jnp.zeros(q), jnp.zeros(k), jnp.zeros(v))


@pytest.mark.parametrize("name", OF_THREE)
@pytest.mark.filterwarnings("error")
def test_lists_and_numpy_arrays_are_taken(name):
    f, arrays = OF_THREE[name], binary((2, 3, 2, 4))
    want = f(*arrays)
    for made in (np.ndarray.tolist, lambda x: x.astype(np.float64)):
        given = [made(np.asarray(x)) for x in arrays]
        np.testing.assert_array_equal(f(*given), want)


class Compiled(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_compiled_or_not_the_products_of_integers_are_equal(self):
        arrays = binary((2, 3, 2, 4))
        for name, f in OF_THREE.items():
            with self.subTest(name):
                chex.assert_trees_all_equal(self.variant(f)(*arrays), f(*arrays))


@pytest.mark.parametrize("name", ["sasa", "qk_token", "qk_channel"])
@pytest.mark.parametrize("q, k", [((6, 4), (6, 4)), ((6, 2, 4), (5, 2, 4))])
def test_query_and_key_of_two_shapes_are_refused_by_name(name, q, k):
    message = f"{name}: got q {re.escape(str(q))}, k {re.escape(str(k))}, expected one"
    with pytest.raises(ValueError, match=message):
        getattr(attention, name)(jnp.zeros(q), jnp.zeros(k), lambda x: x)


@pytest.mark.parametrize("name", ORDERED)
def test_an_unknown_order_is_refused(name):
    message = f"{name}: order is 'kv_q', expected one of .*'auto', 'qk_v'"
    with pytest.raises(ValueError, match=message):
        ORDERED[name](*draw(SHAPE), order="kv_q")


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


def test_sdsa_by_hand():
    q, k, v = tokens([1, 0], [1, 1]), tokens([1, 1], [1, 0]), tokens([1, 1], [1, 1])
    got = attention.sdsa(q, k, v, at_least(2))  # sums 2, 1
    np.testing.assert_array_equal(got, tokens([1, 0], [1, 0]))


def test_sdsa_pools_key_and_value_then_their_product_and_the_masked_query():
    # a row of three tokens, pools that look one token to the right
    q, k, v = tokens([0], [1], [0]), tokens([0], [1], [0]), tokens([0], [0], [1])
    seen = []

    def right(name):
        def pool(x):
            seen.append((name, x[:, 0, 0].tolist()))
            return jnp.maximum(x, jnp.concatenate([x[1:], x[:1] * 0]))

        return pool

    def fire(sums):
        seen.append(("sum", sums[:, 0, 0].tolist()))
        return at_least(2)(sums)

    got = attention.sdsa(q, k, v, fire, right("pool"), right("products"))
    assert seen == [
        ("pool", [0, 1, 0]),  # K: 1, 1, 0
        ("pool", [0, 0, 1]),  # V: 0, 1, 1
        ("products", [0, 1, 0]),  # K V: 1, 1, 0
        ("sum", [2]),
        ("products", [0, 1, 0]),
    ]
    np.testing.assert_array_equal(got, tokens([1], [1], [0]))
    same = attention.sdsa(q, k, v, fire, right("pool"))
    np.testing.assert_array_equal(same, got)
    none = attention.sdsa(q, k, v, fire)
    np.testing.assert_array_equal(none, q * 0)


# --- attention without a value --------------------------------------------------------


def test_qk_attention_by_hand():
    q, k = (
        tokens([1, 0, 1], [0, 0, 1], [1, 0, 0]),
        tokens([1, 1, 0], [1, 1, 1], [0, 1, 1]),
    )
    by_token = attention.qk_token(q, k, at_least(2))  # sums 2, 1, 1
    np.testing.assert_array_equal(by_token, tokens([1, 1, 0], [0, 0, 0], [0, 0, 0]))
    by_channel = attention.qk_channel(q, k, at_least(2))  # sums 2, 0, 2
    np.testing.assert_array_equal(by_channel, tokens([1, 0, 0], [1, 0, 1], [0, 0, 1]))


def test_sasa_by_hand():
    q, k = (
        tokens([1, 0, 1], [1, 1, 1], [0, 0, 1]),
        tokens([1, 1, 0], [1, 1, 1], [1, 1, 1]),
    )
    got = attention.sasa(q, k, at_least(2))  # sums 2, 1, 2
    np.testing.assert_array_equal(got, tokens([1, 0, 1], [1, 0, 1], [0, 0, 1]))


@pytest.mark.parametrize("name", ["sasa", "qk_token", "qk_channel"])
def test_attention_without_a_value_by_loops(name):
    q, k, _ = binary((2, 3, 5, 2, 4), seed=1)
    seen = []

    def fire(sums):
        seen.append(sums)
        return at_least(2)(sums)

    got = getattr(attention, name)(q, k, fire)
    want = np.zeros(q.shape)
    for at, q1, k1, _ in heads(q, k, k):
        for n, c in np.ndindex(*q1.shape):
            if name == "qk_token":
                want[at][n, c] = (sum(q1[n]) >= 2) * k1[n, c]
            elif name == "qk_channel":
                want[at][n, c] = (sum(q1[:, c]) >= 2) * k1[n, c]
            else:
                want[at][n, c] = (sum(q1[:, c] * k1[:, c]) >= 2) * q1[n, c]
    np.testing.assert_array_equal(got, want)
    shape = (2, 3, 5, 2, 1) if name == "qk_token" else (2, 3, 1, 2, 4)
    assert seen[0].shape == shape and 0.05 < got.mean() < 0.6


@pytest.mark.parametrize("name", ["sasa", "qk_token", "qk_channel"])
def test_attention_without_a_value_counts_in_float32(name):
    shape = (1, 1, 257) if name == "qk_token" else (257, 1, 1)
    ones, seen = jnp.ones(shape, jnp.bfloat16), []
    function = getattr(attention, name)
    out = function(ones, ones, lambda s: seen.append(s) or s * 0 + 1)
    assert (out.dtype, seen[0].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(seen[0], [[[257]]])


# --- STAtten, alpha-XNOR --------------------------------------------------------------


@pytest.mark.parametrize("order", attention.ORDERS)
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_statten_by_loops(chunk, order):
    q, k, v = binary((2, 4, 3, 2, 5), 4)
    got = attention.statten(q, k, v, chunk, order)
    want = np.zeros(q.shape)
    q, k, v = map(np.asarray, (q, k, v))
    for b, t, n, h in np.ndindex(2, 4, 3, 2):
        for other, m in np.ndindex(4, 4):
            if t // chunk == other // chunk:
                score = sum(q[b, t, n, h] * k[b, other, m, h])
                want[b, t, n, h] += score * v[b, other, m, h]
    np.testing.assert_array_equal(got, want)
    if chunk == 1:
        np.testing.assert_array_equal(got, attention.a2os2a(q, k, v))


def test_statten_by_hand():
    # four steps of one token, d = 2: the chunks are steps 0, 1 and 2, 3
    q = jnp.array([[1, 0], [1, 1], [0, 1], [0, 0]], jnp.float32)[:, None, None]
    k = jnp.array([[1, 1], [0, 1], [1, 0], [1, 1]], jnp.float32)[:, None, None]
    v = jnp.array([[1, 0], [1, 1], [0, 1], [1, 1]], jnp.float32)[:, None, None]
    # scores: 0 with 0, 1: 1, 0; 1: 2, 1; 2 with 2, 3: 0, 1; 3: 0, 0
    want = [[1, 0], [3, 1], [1, 1], [0, 0]]
    np.testing.assert_array_equal(attention.statten(q, k, v)[:, 0, 0], want)


@pytest.mark.parametrize("chunk", [0, -1, 3])
def test_statten_refuses_a_chunk_that_does_not_divide_the_steps(chunk):
    with pytest.raises(ValueError, match=f"statten: got chunk {chunk} with T = 4"):
        attention.statten(*binary((4, 3, 2, 5)), chunk)


def test_statten_refuses_arrays_without_time():
    with pytest.raises(
        ValueError, match=r"statten: got q \(6, 3, 4\), expected .*T, N"
    ):
        attention.statten(*binary((6, 3, 4)))


@pytest.mark.parametrize("order", attention.ORDERS)
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_xnor_by_loops(order, alpha):
    q, k, v = binary((2, 5, 2, 3), 4)
    got = attention.xnor(q, k, v, alpha, order)
    want = np.zeros(q.shape)
    for at, q1, k1, v1 in heads(q, k, v):
        for n, m in np.ndindex(len(q1), len(k1)):
            pairs = list(zip(q1[n], k1[m], strict=True))
            score = sum(a == b == 1 for a, b in pairs)
            score += alpha * sum(a == b == 0 for a, b in pairs)
            want[at][n] += score * v1[m]
    np.testing.assert_array_equal(got, want)


def test_xnor_by_hand():
    q, k = tokens([1, 0, 0], [1, 1, 0]), tokens([1, 0, 1], [0, 0, 0])
    v = tokens([1, 1, 0], [0, 1, 0])
    # both fire: [[1, 0], [1, 0]]; neither: [[1, 2], [0, 1]]
    want = [[1.5, 2.5, 0], [1, 1.5, 0]]
    np.testing.assert_array_equal(attention.xnor(q, k, v, 0.5)[:, 0], want)


def test_xnor_refuses_an_alpha_that_is_no_number():
    with pytest.raises(ValueError, match=r"xnor: got alpha of shape \(3,\)"):
        attention.xnor(*binary(SHAPE), jnp.ones(3))


# --- DSSA -----------------------------------------------------------------------------


def test_dssa_by_loops(x64):
    rng = np.random.default_rng(0)
    y1, y2 = rng.normal(size=(2, 2, 3, 4, 2, 5))  # M = 4
    s = rng.integers(0, 2, (2, 3, 6, 2, 5)).astype(float)  # N = 6
    one, two = np.array([0.5, 2.0]), np.array([3.0, 0.25])
    seen = []

    def fire(sums):
        seen.append(sums)
        return at_least(0.5)(sums)

    got = attention.dssa(*map(jnp.asarray, (y1, y2, s)), fire, one, two)
    want = np.zeros(s.shape)
    for b, t, h, n, m in np.ndindex(2, 3, 2, 6, 4):
        charge = one[h] * sum(y1[b, t, m, h] * s[b, t, n, h])
        np.testing.assert_allclose(seen[0][b, t, h, m, n], charge, atol=1e-12)
        want[b, t, n, h] += two[h] * (charge >= 0.5) * y2[b, t, m, h]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    assert seen[0].shape == (2, 3, 2, 4, 6)
    # a scale that is made of the spikes
    late = attention.dssa(
        *map(jnp.asarray, (y1, y2, s)), fire, one, lambda a: a.sum((0, 1, 3, 4))
    )
    count = at_least(0.5)(seen[0]).sum((0, 1, 3, 4))
    per_head = np.asarray(count / two)[:, None]
    np.testing.assert_allclose(late, np.asarray(got) * per_head, atol=1e-9)


def test_dssa_by_hand():
    y1, y2, s = tokens([0.5, -1]), tokens([2, -3]), tokens([1, 0], [1, 1], [0, 0])
    got = attention.dssa(y1, y2, s, at_least(0.5))  # charges 0.5, -0.5, 0
    np.testing.assert_array_equal(got, tokens([2, -3], [0, 0], [0, 0]))
    scales = jnp.array([0.5]), jnp.array([4.0])
    np.testing.assert_array_equal(
        attention.dssa(y1, y2, s, at_least(0.25), *scales), got * 4
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dssa_hands_on_at_least_float32(dtype):
    ones, seen = jnp.ones((2, 257, 1, 257), dtype), []

    def fire(sums):
        seen.append((sums.dtype, sums.shape))
        return at_least(257)(sums)

    out = jax.jit(lambda s: attention.dssa(s, s, s, fire))(ones)
    assert seen == [(jnp.float32, (2, 1, 257, 257))] and out.dtype == jnp.float32
    np.testing.assert_array_equal(out, np.full(ones.shape, 257))


@pytest.mark.parametrize(
    "y1, y2, s",
    [
        ((6, 4), (6, 4), (6, 4)),
        ((2, 4, 3, 4), (2, 5, 3, 4), (2, 6, 3, 4)),
        ((2, 4, 3, 4), (2, 4, 3, 4), (2, 6, 3, 5)),
        ((2, 4, 3, 4), (2, 4, 3, 4), (1, 6, 3, 4)),
    ],
)
def test_dssa_refuses_shapes_that_do_not_fit(y1, y2, s):
    message = f"dssa: got y1 {re.escape(str(y1))}.*s {re.escape(str(s))}, expected"
    with pytest.raises(ValueError, match=message):
        attention.dssa(jnp.zeros(y1), jnp.zeros(y2), jnp.zeros(s), lambda x: x)


@pytest.mark.parametrize("which", ["scale1", "scale2"])
def test_dssa_refuses_a_scale_that_is_not_one_number_a_head(which):
    x = jnp.zeros((2, 4, 3, 5))
    with pytest.raises(ValueError, match=rf"dssa: got {which} of shape \(\), expected"):
        attention.dssa(x, x, x, lambda x: x, **{which: jnp.ones(())})


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


@pytest.mark.parametrize("product", [attention.shift_attention, attention.bsa])
def test_bipolar_attention_by_hand(product):
    q, k, v = tokens([1, -1], [0, 1]), tokens([1, -1], [-1, 0]), tokens([1, 0], [1, 1])
    # scores [[2, -1], [-1, 0]]; sums 4.5, 1.5: 2^-3, 2^-1
    want = [[1 / 2 + 1 / 16, 1 / 16], [1 / 4 + 1 / 2, 1 / 2]]
    np.testing.assert_array_equal(product(q, k, v)[:, 0], want)


# --- gradients, all of them -----------------------------------------------------------

SPIKE = surrogate.sigmoid()
SCALES = jnp.array([0.5, 2.0, 1.5])
# name: of three arrays; arguments that get a gradient, all unless said
DIFFERENTIABLE = OF_THREE | {
    "sdsa": lambda q, k, v: attention.sdsa(q, k, v, SPIKE),
    "sdsa, pooled": lambda q, k, v: attention.sdsa(
        q, k, v, SPIKE, lambda x: pooling.max_of_neighbours(x, 2)
    ),
    "sasa": lambda q, k, v: attention.sasa(q, k, SPIKE) + v,
    "qk_token": lambda q, k, v: attention.qk_token(q, k, SPIKE) + v,
    "qk_channel": lambda q, k, v: attention.qk_channel(q, k, SPIKE) + v,
    "dssa": lambda q, k, v: attention.dssa(q, k, v, SPIKE, SCALES, SCALES),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_every_argument_gets_a_gradient(name):
    shape = (2, 4, 3, 4)
    qkv = draw(shape) if name in ("shift_attention", "bsa") else binary(shape, seed=5)
    weight = jax.random.normal(jax.random.key(0), shape)

    def loss(*qkv):
        return (DIFFERENTIABLE[name](*qkv) * weight).sum()

    for gradient in jax.grad(loss, (0, 1, 2))(*qkv):
        assert np.isfinite(gradient).all() and (gradient != 0).mean() > 0.1


def test_alpha_and_the_scales_of_dssa_get_a_gradient():
    qkv = binary(SHAPE)
    slope = jax.grad(lambda a: attention.xnor(*qkv, a).sum())(0.5)
    silent = attention.a2os2a(1 - qkv[0], 1 - qkv[1], qkv[2])
    np.testing.assert_allclose(slope, silent.sum(), rtol=1e-6)
    slopes = jax.grad(
        lambda *scales: attention.dssa(*qkv, SPIKE, *scales).sum(), (0, 1)
    )(SCALES, SCALES)
    assert all((x != 0).all() for x in slopes)


# --- the certificate ------------------------------------------------------------------


def spikes(form, u):
    if form == "ternary":
        return jnp.sign(u) * (abs(u) >= 1)
    if form == "integer":
        return jnp.clip(jnp.round(u), 0, 4)
    return {"binary": at_least(1), "relu": jax.nn.relu, "real": lambda u: u}[form](u)


FIRE = at_least(1)
POOL = functools.partial(pooling.max_of_neighbours, side=4)
ALL_BINARY = ("binary",) * 3
# function of q, k, v; their alphabets; is what is left additions, choices and shifts?
CERTIFIED = {
    "a2os2a": (attention.a2os2a, ("binary", "relu", "ternary"), True),
    "a2os2a, real v": (attention.a2os2a, ("binary", "relu", "real"), False),
    "ssa": (attention.ssa, ALL_BINARY, True),
    "ssa, scale 0.3": (lambda *x: attention.ssa(*x, 0.3), ALL_BINARY, False),
    "sdsa3": (attention.sdsa3, ALL_BINARY, True),
    "integer, unexpanded": (attention.integer, ("integer",) * 3, False),
    "integer, binary slots": (attention.integer, ALL_BINARY, True),  # d = 4: 1/2
    "statten": (attention.statten, ALL_BINARY, True),
    "xnor": (lambda *x: attention.xnor(*x, 0.5), ALL_BINARY, True),
    "xnor, alpha 0.3": (lambda *x: attention.xnor(*x, 0.3), ALL_BINARY, False),
    "xnor, real k": (
        lambda *x: attention.xnor(*x, 0.5),
        ("binary", "real", "real"),
        False,
    ),
    "bsa": (attention.bsa, ("ternary", "ternary", "binary"), True),
    "bsa, real v": (attention.bsa, ("ternary", "ternary", "real"), True),  # shifts
    "bsa, real q and k": (attention.bsa, ("real", "real", "binary"), False),
    "sdsa": (lambda *x: attention.sdsa(*x, FIRE), ALL_BINARY, True),
    "sdsa, pooled": (
        lambda *x: attention.sdsa(*x, FIRE, POOL, pooling.max_of_entries),
        ALL_BINARY,
        True,
    ),
    "sdsa, real k and v": (
        lambda *x: attention.sdsa(*x, FIRE),
        ("binary", "real", "real"),
        False,
    ),
    "sasa": (lambda q, k, v: attention.sasa(q, k, FIRE), ALL_BINARY, True),
    "sasa, real": (lambda q, k, v: attention.sasa(q, k, FIRE), ("real",) * 3, False),
    "qk_token": (lambda q, k, v: attention.qk_token(q, k, FIRE), ALL_BINARY, True),
    "qk_channel": (lambda q, k, v: attention.qk_channel(q, k, FIRE), ALL_BINARY, True),
    "qk_channel, no neuron": (
        lambda q, k, v: attention.qk_channel(q, k, lambda x: x),
        ("real", "real", "binary"),
        False,
    ),
    "dssa": (
        lambda s, y1, y2: attention.dssa(y1, y2, s, FIRE),
        ("binary", "real", "real"),
        True,
    ),
    "dssa, scaled": (
        lambda s, y1, y2: attention.dssa(y1, y2, s, FIRE, jnp.full(3, 0.3)),
        ("binary", "real", "real"),
        False,
    ),
    "dssa, real s": (
        lambda s, y1, y2: attention.dssa(y1, y2, s, FIRE),
        ("real",) * 3,
        False,
    ),
}


@pytest.mark.parametrize("name", CERTIFIED)
def test_the_certificate_of(name):
    function, alphabets, additions = CERTIFIED[name]

    def layer(w, u):  # weights; membranes [3, T, N, heads, d]
        y = function(*(spikes(form, x) for form, x in zip(alphabets, u, strict=True)))
        return spikes("binary", y) @ w

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, 5), (3, 2, 16, 3, 4))]
    report = audit.certify(layer, *shapes)
    assert report.addition_only == additions, str(report)
    assert not report.unknown


# --- public outputs -------------------------------------------------------------------


def close(got, want, name=""):
    bound = 1e-9 if want.dtype == np.float64 else 2e-7  # float32 has rounded already
    atol = bound * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=name)


def neuron(v_th=1.0, spike_fn=None):
    step = functools.partial(
        neurons.lif_step, decay_input=True, v_th=v_th, spike_fn=spike_fn or SPIKE
    )
    return lambda x: neurons.unroll(step, neurons.lif_init, x)  # time first


class Public:
    """The layers around an attention in eval mode, tokens [T, B, N, D]."""

    def __init__(self, data, heads=4):
        self.data, self.heads = data, heads
        self.trained = {
            key: jnp.asarray(data[f"sd/{key}"], jnp.float64)
            for key in (k.removeprefix("eval/grad/") for k in data)
            if f"eval/grad/{key}" in data
        }

    def get(self, params, key):
        return (
            params[key] if key in params else jnp.asarray(self.data[f"sd/{key}"], float)
        )

    def split(self, x):
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def norm(self, params, name, x):
        weight, bias, mean, var = (
            self.get(params, f"{name}.{key}")
            for key in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / jnp.sqrt(var + 1e-5)
        shape = (1,) * (x.ndim - 1) + (-1,)
        return x * scale.reshape(shape) + (bias - mean * scale).reshape(shape)

    def linear(self, params, name, x, bias=False):
        kernel = self.get(params, f"{name}.weight")
        y = x @ kernel.reshape(kernel.shape[:2]).T
        if bias:
            y += self.get(params, f"{name}.bias").reshape(1, 1, 1, -1)
        return y

    def check(self, run):
        """run(params, x [T, B, N, D]) -> (out, {layer: spikes as theirs})."""
        x = jnp.asarray(self.data["in/x"], jnp.float64)
        cotangent = jnp.asarray(self.data["in/cotangent"], jnp.float64)
        side = x.shape[-1]

        def to_tokens(x):
            return jnp.moveaxis(x, 2, -1).reshape(*x.shape[:2], side**2, -1)

        def loss(params, x):
            out, kept = run(params, to_tokens(x))
            return (out * to_tokens(cotangent)).sum(), (out, kept)

        grad = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (value, (out, kept)), (slopes, slope) = grad(self.trained, x)
        close(out, to_tokens(self.data["eval/out"]), "out")
        close(value, self.data["eval/loss"], "loss")
        close(slope, self.data["eval/grad_x"], "grad_x")
        for key, got in slopes.items():
            close(got, self.data[f"eval/grad/{key}"], key)
        for key, got in kept.items():
            np.testing.assert_array_equal(got, self.data[f"eval/{key}"], key)
        assert kept and slopes


def test_the_pooled_sdsa_of_the_public_code(parity, x64):
    public = Public(parity("prim_sdt_sdsa_dvs_a"))

    def run(params, x):
        kept, s = {}, neuron()(x)
        q, k, v = (
            public.split(
                neuron()(
                    public.norm(
                        params, f"{n}_bn", public.linear(params, f"{n}_conv", s)
                    )
                )
            )
            for n in "qkv"
        )

        def keep(key, x):
            kept[key] = x.swapaxes(2, 3)  # heads before tokens
            return x

        def fire(x):
            return keep("spk/talking_heads_lif", neuron(0.5)(x))

        def entries(x):
            times = 2 + ("spk/talking_heads_lif" in kept)  # the third and fourth pool
            return keep("act/pool" + "'" * times, pooling.max_of_entries(x))

        a = attention.sdsa(q, k, v, fire, POOL, entries)
        y = public.linear(params, "proj_conv", a.reshape(x.shape), bias=True)
        return x + public.norm(params, "proj_bn", y), kept

    public.check(run)


def test_the_qk_token_attention_of_the_public_code(parity, x64):
    public = Public(parity("prim_qkformer_qkta_a"))

    def run(params, x):
        kept = {}
        q, k = (
            public.split(
                neuron()(
                    public.norm(
                        params, f"{n}_bn", public.linear(params, f"{n}_conv", x)
                    )
                )
            )
            for n in "qk"
        )

        def fire(x):
            s = neuron(0.5)(x)
            kept["spk/attn_lif"] = jnp.transpose(s, (0, 1, 3, 4, 2))  # heads, 1, N
            return s

        a = attention.qk_token(q, k, fire).reshape(x.shape)
        y = public.linear(params, "proj_conv", a, bias=True)
        return neuron()(public.norm(params, "proj_bn", y)), kept

    public.check(run)


def test_the_dssa_of_the_public_code(parity, x64):
    public = Public(parity("prim_resformer_dssa_a"))
    fire = neuron(spike_fn=surrogate.atan())
    rates = "firing_rate_x", "firing_rate_attn"

    def run(params, x):
        kept, s = {}, fire(x)
        steps, batch, _, dim = x.shape
        kernel = public.get(params, "W.weight")  # [2C, C, 2, 2], stride 2
        patches = s.reshape(steps, batch, 2, 2, 2, 2, dim)  # [T, B, H', 2, W', 2, C]
        y = jnp.einsum("tbhiwjc,ocij->tbhwo", patches, kernel)
        y = public.norm(params, "norm.bn", y.reshape(steps, batch, 4, 2 * dim))
        y1, y2 = jnp.split(public.split(y), 2, axis=-1)
        rate1, rate2 = (public.get(params, name).reshape(4) for name in rates)

        def keep(x):
            kept["spk/activation_attn"] = fire(x)  # [T, B, heads, M, N]
            return kept["spk/activation_attn"]

        a = attention.dssa(
            y1, y2, public.split(s), keep, (rate1 * 8) ** -0.5, (rate2 * 4) ** -0.5
        )
        y = public.linear(params, "Wproj", fire(a.reshape(x.shape)))
        return x + public.norm(params, "norm_proj.bn", y), kept

    public.check(run)
