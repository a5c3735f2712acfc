import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.modules.norm import BatchNorm

CASES = ["bn1d_small_NC", "bn1d_NCL", "bn2d_NCHW"]


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * np.abs(want).max())


def channels_last(x):
    return jnp.moveaxis(jnp.asarray(x, jnp.float64), 1, -1)


@pytest.fixture(scope="module")
def step():
    """One compiled training step: (y, statistics), (grad_x, grad_scale, grad_bias)."""
    norm = BatchNorm(param_dtype=jnp.float64)

    @jax.jit
    def run(params, stats, x, cotangent):
        def forward(params, x):
            variables = {"params": params, "batch_stats": stats}
            y, kept = norm.apply(variables, x, True, mutable=["batch_stats"])
            return y, kept["batch_stats"]

        y, pull, stats = jax.vjp(forward, params, x, has_aux=True)
        return y, stats, pull(cotangent)

    return run


@pytest.mark.parametrize("case", CASES)
def test_three_training_steps_and_evaluation_as_torch_has_them(x64, parity, step, case):
    data = parity("prim_batchnorm_a")
    get = lambda key: data[f"{case}/{key}"]  # noqa: E731
    wide = functools.partial(jnp.asarray, dtype=jnp.float64)
    params = {"scale": wide(get("sd/weight")), "bias": wide(get("sd/bias"))}
    stats = {"mean": wide(get("sd/running_mean")), "var": wide(get("sd/running_var"))}
    for i in range(3):
        x, cotangent = (channels_last(get(f"step{i}/{k}")) for k in ("x", "cotangent"))
        y, stats, (grads, grad_x) = step(params, stats, x, cotangent)
        close(y, channels_last(get(f"step{i}/y")))
        close(grad_x, channels_last(get(f"step{i}/grad_x")))
        close(grads["scale"], get(f"step{i}/grad_weight"))
        close(grads["bias"], get(f"step{i}/grad_bias"))
        close(stats["mean"], get(f"step{i}/running_mean"))
        close(stats["var"], get(f"step{i}/running_var"))
    variables = {"params": params, "batch_stats": stats}
    y = BatchNorm(param_dtype=jnp.float64).apply(variables, x, False)
    close(y, channels_last(get("eval_after/y")))


def test_repeats_count_in_the_unbiased_variance_alone(x64):
    norm = BatchNorm(param_dtype=jnp.float64)
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (2, 1, 3, 4)))
    variables = norm.init(jax.random.key(0), x, False)
    apply = functools.partial(norm.apply, variables, train=True, mutable="batch_stats")
    y, once = apply(x, repeats=5)
    want_y, repeated = apply(jnp.repeat(x, 5, axis=1))
    plain_y, plain = apply(x)
    np.testing.assert_allclose(y, want_y[:, :1], rtol=1e-12)
    np.testing.assert_array_equal(y, plain_y)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), once, repeated
    )
    var = 0.9 + 0.1 * np.asarray(x).reshape(-1, 4).var(0) * 30 / 29  # n = 5·2·3
    np.testing.assert_allclose(once["batch_stats"]["var"], var, rtol=1e-12)
    assert (np.abs(plain["batch_stats"]["var"] - var) > 1e-3).all()


def test_one_value_a_channel_is_no_division_by_zero():
    norm = BatchNorm()
    x = jnp.ones((1, 2))
    variables = norm.init(jax.random.key(0), x, False)
    y, kept = norm.apply(variables, x, True, mutable=["batch_stats"])
    assert np.isfinite(y).all()
    np.testing.assert_allclose(kept["batch_stats"]["var"], 0.9)


def test_initialisation_looks_at_no_batch():
    norm = BatchNorm(gain=0.25)
    x = jnp.full((3, 2), 7.0)
    for train in (False, True):
        v = norm.init(jax.random.key(0), x, train)
        np.testing.assert_array_equal(v["params"]["scale"], [0.25, 0.25])
        np.testing.assert_array_equal(v["params"]["bias"], [0, 0])
        np.testing.assert_array_equal(v["batch_stats"]["mean"], [0, 0])
        np.testing.assert_array_equal(v["batch_stats"]["var"], [1, 1])


def test_bfloat16_is_normalised_in_float32():
    norm = BatchNorm()
    rng = np.random.default_rng(0)
    x = jnp.asarray(100 + rng.normal(size=(64, 2)), jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, False)
    y, kept = norm.apply(variables, x, True, mutable=["batch_stats"])
    assert y.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(
        y, (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5), atol=1e-3
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folded_norm_is_a_bias_in_float32(dtype):
    norm = BatchNorm(folded=True)
    x = jnp.full((2, 3), 1, dtype)
    variables = jax.eval_shape(norm.init, jax.random.key(0), x, False)
    assert jax.tree.map(lambda leaf: leaf.shape, variables) == {
        "params": {"bias": (3,)}
    }
    bias = jnp.array([0.0, 1, 2**-20])
    y = norm.apply({"params": {"bias": bias}}, x, False)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, np.stack([1 + np.asarray(bias)] * 2))
