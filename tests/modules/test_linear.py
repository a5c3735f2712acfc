import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.modules.linear import (
    INITS,
    conv,
    conv3x3,
    linear,
    param_dtype,
)


def test_a_convolution_keeps_the_size_and_sees_its_neighbours():
    conv = conv3x3(1, dtype=jnp.float32, name=None)
    x = jnp.zeros((1, 2, 5, 5, 1)).at[0, 1, 2, 2].set(1.0)
    variables = conv.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (3, 3, 1, 1)}}
    ones = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    y = conv.apply(ones, x)
    assert y.shape == (1, 2, 5, 5, 1)
    assert not y[0, 0].any()  # frames do not see each other
    np.testing.assert_array_equal(y[0, 1, 1:4, 1:4, 0], np.ones((3, 3)))
    assert y.sum() == 9


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_acts_on_the_last_axis(bias):
    layer = linear(3, bias=bias, dtype=jnp.float32, name=None)
    variables = layer.init(jax.random.key(0), jnp.ones((2, 5, 4)))
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes == {"kernel": (4, 3)} | ({"bias": (3,)} if bias else {})
    assert layer.apply(variables, jnp.ones((2, 5, 4))).shape == (2, 5, 3)


@pytest.mark.parametrize(
    "dtype, want",
    [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_parameters_are_float32_at_least(x64, dtype, want):
    assert param_dtype(jnp.dtype(dtype)) == want
    for layer in (linear, conv3x3):
        how = {"bias": False} if layer is linear else {}
        module = layer(2, dtype=jnp.dtype(dtype), name=None, **how)
        x = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.float32)
        y, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
        assert y.dtype == dtype
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(want)}


SHAPES = {  # of a kernel: its inputs, as PyTorch counts them
    "map": ((48, 400), 48),
    "conv3x3": ((3, 3, 16, 150), 144),
    "in groups": ((3, 3, 4, 600), 36),  # a filter sees the channels of its group alone
    "depthwise": ((3, 3, 1, 2400), 9),
}


@pytest.fixture(scope="module")
def drawn():
    """{rule: {name: kernel}}, compiled at once."""
    keys = jax.random.split(jax.random.key(0, impl="unsafe_rbg"), 2)

    @jax.jit
    def draw(keys):
        return {
            rule: {
                name: init(key, shape, jnp.float32)
                for name, (shape, _) in SHAPES.items()
            }
            for key, (rule, init) in zip(keys, INITS.items(), strict=True)
        }

    return jax.device_get(draw(keys))


@pytest.mark.parametrize("name", SHAPES)
def test_initial_kernels_are_those_of_torch_or_normal(drawn, name):
    bound = SHAPES[name][1] ** -0.5
    uniform, normal = drawn["torch"][name], drawn["normal"][name]
    assert 0.99 * bound < np.abs(uniform).max() <= bound
    assert abs(uniform.std() / bound - 3**-0.5) < 0.02
    assert abs(normal.std() / 0.02 - 1) < 0.03 and abs(normal.mean()) < 1e-3
    assert 3.5 * 0.02 < np.abs(normal).max() < 6 * 0.02  # not cut at two


def test_a_bias_in_torch_starts_within_the_same_bounds_as_its_kernel():
    how = dict(bias=True, dtype=jnp.dtype("float32"), init="torch", inputs=64)
    key, x = jax.random.key(0, impl="unsafe_rbg"), jnp.zeros((1, 64))
    params = linear(500, **how, name=None).init(key, x)["params"]
    for value in params.values():
        assert 0.98 / 8 < np.abs(value).max() <= 1 / 8
    plain = linear(500, **how | dict(init="normal"), name=None).init(key, x)["params"]
    assert not plain["bias"].any()


def test_a_convolution_sees_what_it_says():
    """Stride, padding and groups, entry by entry."""
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 4)).astype(np.float32)
    layer = conv(
        6,
        kernel=2,
        stride=2,
        padding=0,
        groups=2,
        dtype=jnp.dtype("float32"),
        name=None,
    )
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(2, 2, 2, 6)).astype(np.float32)
    got = layer.apply({"params": {"kernel": kernel}}, x)
    assert got.shape == (1, 3, 3, 6)
    for i, j, o in np.ndindex(3, 3, 6):
        channels = slice(0, 2) if o < 3 else slice(2, 4)
        window = x[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, channels]
        np.testing.assert_allclose(
            got[0, i, j, o], (window * kernel[..., o]).sum(), rtol=1e-4, atol=1e-5
        )
