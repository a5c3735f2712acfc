import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.modules.head import ORDERS, FoldedHead

STEPS = 3


@pytest.fixture(scope="module")
def inputs():
    """Spikes [B, T, N, D] and the parameters."""
    rng = np.random.default_rng(0)
    s = (rng.uniform(size=(2, STEPS, 5, 8)) < 0.4).astype(np.float64)
    return s, dict(kernel=rng.normal(size=(8, 4)), bias=rng.normal(size=4))


@pytest.mark.parametrize("order", ORDERS)
def test_all_orders_are_the_sum_over_tokens_and_time(x64, inputs, order):
    s, params = inputs
    head = FoldedHead(4, order, STEPS, jnp.dtype("float64"))
    whole = head.apply({"params": params}, jnp.asarray(s))
    steps = head.apply({"params": params}, jnp.asarray(s), per_step=True)
    want = np.zeros((2, STEPS, 4))
    for b, t, _, d in np.argwhere(s):
        want[b, t] += params["kernel"][d]
    np.testing.assert_allclose(whole, want.sum(1) + params["bias"], rtol=1e-13)
    np.testing.assert_allclose(steps, STEPS * want + params["bias"], rtol=1e-13)
    np.testing.assert_allclose(whole, steps.mean(1), rtol=1e-13)


@pytest.mark.parametrize("tokens, planes", [(1, 2), (2, 3), (5, 4), (7, 5), (16, 6)])
def test_as_many_digits_as_the_largest_count_has(tokens, planes):
    head = FoldedHead(4, "bits", STEPS, jnp.float32)
    s = jnp.ones((1, STEPS, tokens, 8))
    params = dict(kernel=jnp.ones((8, 4)), bias=jnp.zeros(4))
    text = str(jax.make_jaxpr(lambda s: head.apply({"params": params}, s))(s))
    assert text.count("dot_general") == planes == int(np.ceil(np.log2(3 * tokens + 1)))
    np.testing.assert_array_equal(
        head.apply({"params": params}, s), [[24 * tokens] * 4]
    )


def test_weights_come_before_the_sum_where_spikes_are_weighted():
    s = jnp.ones((2, STEPS, 5, 8))
    widths = {}
    for order in ORDERS:
        head = FoldedHead(4, order, STEPS, jnp.float32)
        params = jax.eval_shape(head.init, jax.random.key(0), s)
        jaxpr = jax.make_jaxpr(head.apply)(params, s)
        dots = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
        widths[order] = {e.invars[0].aval.shape for e in dots}
    every = {(2 * STEPS * 5, 8), s.shape}  # the axes in front of D, together or not
    assert widths["spikes"] <= every and widths["counts"] == widths["bits"] == {(2, 8)}


@pytest.mark.parametrize("steps, products", [(1, 0), (STEPS, 1)])
def test_single_steps_are_not_multiplied_by_one(steps, products):
    head = FoldedHead(4, "spikes", steps, jnp.float32)
    s = jnp.ones((2, STEPS, 5, 8))
    params = jax.eval_shape(head.init, jax.random.key(0), s)
    jaxpr = jax.make_jaxpr(lambda p: head.apply(p, s, per_step=True))(params)
    assert str(jaxpr).count(" mul ") == products
