import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.train.average import average


def _tree(w, b, dtype=jnp.float32):
    return {
        "params": {"w": jnp.asarray(w, dtype)},
        "batch_stats": {"mean": jnp.asarray(b, jnp.float32)},
    }


def test_the_mean_by_hand():
    got = average([_tree([1.0, 2], 3.0), _tree([3.0, 6], -3.0), _tree([5.0, 1], 6.0)])
    np.testing.assert_allclose(got["params"]["w"], [3, 3])
    np.testing.assert_allclose(got["batch_stats"]["mean"], 2)


def test_the_mean_of_one_is_itself_and_order_does_not_matter():
    a, b = _tree([0.1, 0.7], 0.3), _tree([0.2, -5], 1e3)
    for got, want in ((average([a]), a), (average([a, b]), average([b, a]))):
        np.testing.assert_array_equal(got["params"]["w"], want["params"]["w"])


def test_sums_are_float32_and_dtypes_stay():
    # in bfloat16, 256 + 1 is 256, and the mean of these would be 64
    trees = [_tree([x], 0.0, jnp.bfloat16) for x in (256.0, 1.0, 1.0, 2.0)]
    got = average(trees)["params"]["w"]
    assert got.dtype == jnp.bfloat16 and got[0] == 65


def test_float64_stays_float64(x64):
    got = average(
        [_tree([1.0], 0.0, jnp.float64), _tree([1 + 2e-12], 0.0, jnp.float64)]
    )
    assert got["params"]["w"].dtype == jnp.float64
    np.testing.assert_allclose(got["params"]["w"] - 1, 1e-12, rtol=1e-3)


def test_errors():
    with pytest.raises(ValueError, match="got no trees, expected one or more"):
        average([])
    for other in (_tree([1.0], 0.0), {"params": {}}):
        with pytest.raises(ValueError, match="got 2 trees that differ, expected one"):
            average([_tree([1.0, 2], 0.0), other])
    with pytest.raises(ValueError, match="got a leaf of int32, expected floating"):
        average([{"step": jnp.int32(3)}])
