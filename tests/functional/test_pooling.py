import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.functional.pooling import max_of_entries, max_of_neighbours, max_pool

CASES = ["spikes_even", "spikes_odd", "negative", "sum_of_spikes"]


@pytest.mark.parametrize("case", CASES)
def test_max_pool_and_its_gradient_at_ties_as_torch_has_them(x64, parity, case):
    data = parity("prim_maxpool_a")
    x, cotangent, y, grad_x = (
        np.moveaxis(data[f"{case}/{key}"].astype(np.float64), 1, -1)
        for key in ("x", "cotangent", "y", "grad_x")
    )
    got, pull = jax.vjp(max_pool, x)
    np.testing.assert_array_equal(got, y)
    np.testing.assert_allclose(pull(jnp.asarray(cotangent))[0], grad_x, atol=1e-12)


def test_a_tie_sends_its_gradient_to_the_first_maximum():
    grad = jax.grad(lambda x: max_pool(x).sum())(jnp.zeros((1, 4, 4, 1)))
    # Windows start at -1 and 1; rows and columns 0 and 1 are their first inside.
    want = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(grad[0, ..., 0], want)


def test_the_border_counts_as_minus_infinity():
    x = jnp.full((1, 4, 4, 1), -3.0)
    np.testing.assert_array_equal(max_pool(x), np.full((1, 2, 2, 1), -3.0))


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (1, 5, 7, 2), (1, 1, 1, 1)])
def test_max_pool_is_the_same_where_it_is_differentiated(shape):
    rng = np.random.default_rng(0)
    for x in (rng.normal(size=shape), rng.integers(-1, 2, shape)):
        x = jnp.asarray(x, jnp.float32)
        plain = max_pool(x)
        places = jnp.arange(1.0, x.size + 1).reshape(shape)
        value, slope = jax.jvp(max_pool, (x,), (places,))
        np.testing.assert_array_equal(value, plain)
        # the place of one maximum each, and backward it gets what forward it gave
        found = np.asarray(x).ravel()[np.asarray(slope, int).ravel() - 1]
        np.testing.assert_array_equal(found, plain.ravel())
        pulled = jax.vjp(max_pool, x)[1](jnp.ones_like(plain))[0]
        assert (pulled * places).sum() == slope.sum()


# Of the 16 entries of a map of 4 x 4
POOLS = {
    "max_pool": lambda x: max_pool(x.reshape(1, 4, 4, 1)),
    "neighbours": lambda x: max_of_neighbours(x.reshape(1, 16, 1, 1), 4),
    "entries": lambda x: max_of_entries(x.reshape(1, 4, 1, 4)),
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32])
def test_every_dtype_is_kept(name, dtype):
    x = jnp.asarray(np.random.default_rng(2).integers(-4, 5, 16))
    got = POOLS[name](x.astype(dtype))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, POOLS[name](x.astype(jnp.float32)))


@pytest.mark.parametrize("name", POOLS)
def test_it_maps_over_a_batch_with_slopes_of_slopes(name):
    """A maximum is linear where it is smooth: of its square the second slope is 2."""
    x = jnp.asarray(
        np.random.default_rng(4).permutation(48).reshape(3, 16), jnp.float32
    )

    def energy(x):
        return (POOLS[name](x) ** 2).sum()

    curvature = jax.jit(jax.vmap(jax.hessian(energy)))(x)
    for one, got in zip(x, curvature, strict=True):
        slope = jax.jacobian(POOLS[name])(one).reshape(-1, 16)
        np.testing.assert_array_equal(got, 2 * slope.T @ slope)


@pytest.mark.parametrize("name", POOLS)
def test_no_nan_is_hidden_with_a_gradient_or_without(name):
    pool = POOLS[name]
    for at in range(16):
        x = jnp.zeros(16).at[at].set(jnp.nan)
        value, _ = jax.jvp(pool, (x,), (x,))
        np.testing.assert_array_equal(jnp.isnan(value), jnp.isnan(pool(x)))
        assert jnp.isnan(value).any()


def test_max_pool_takes_any_leading_axes():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 6, 8, 2)), jnp.float32)
    want = jnp.stack([max_pool(x[:, t]) for t in range(3)], axis=1)
    assert want.shape == (2, 3, 3, 4, 2)
    np.testing.assert_array_equal(max_pool(x), want)


def pooled_by_loops(x, cotangent):
    """3x3 maxima of a matrix; and where a tie sends the cotangent."""
    out, gradient = np.zeros(x.shape), np.zeros(x.shape)
    for i, j in np.ndindex(*x.shape):
        window = [
            (a, b)
            for a in range(max(i - 1, 0), min(i + 2, len(x)))
            for b in range(max(j - 1, 0), min(j + 2, len(x[0])))
        ]
        first = max(window, key=lambda at: x[at])  # the first of equals
        out[i, j] = x[first]
        gradient[first] += cotangent[i, j]
    return out, gradient


@pytest.mark.parametrize("how", ["neighbours", "entries"])
@pytest.mark.parametrize("values", ["spikes", "reals"])
def test_maxima_by_loops_with_the_gradient_of_ties(how, values):
    rng = np.random.default_rng(3)
    shape = (2, 16, 2, 3) if how == "neighbours" else (2, 5, 2, 4)
    x = rng.integers(0, 2, shape) if values == "spikes" else rng.normal(size=shape)
    x, cotangent = x.astype(np.float32), rng.integers(1, 99, shape).astype(np.float32)

    def pool(x):
        if how == "neighbours":
            return max_of_neighbours(x, 4)
        return max_of_entries(x)

    got, pull = jax.vjp(pool, jnp.asarray(x))
    (gradient,) = pull(jnp.asarray(cotangent))
    for b, h in np.ndindex(2, 2):
        parts = [np.s_[b, :, h, :]]
        if how == "neighbours":
            parts = [np.s_[b, :, h, c] for c in range(3)]
        for at in parts:
            matrix = (4, 4) if how == "neighbours" else (5, 4)
            want, slope = pooled_by_loops(
                x[at].reshape(matrix), cotangent[at].reshape(matrix)
            )
            np.testing.assert_array_equal(got[at].reshape(matrix), want)
            np.testing.assert_array_equal(gradient[at].reshape(matrix), slope)
    np.testing.assert_array_equal(got, pool(x))  # without a gradient: by windows


def test_a_map_that_is_no_square_is_refused():
    x = jnp.zeros((2, 12, 1, 4))
    with pytest.raises(
        ValueError, match=r"max_of_neighbours: .*\(2, 12, 1, 4\).*side 3"
    ):
        max_of_neighbours(x, 3)
