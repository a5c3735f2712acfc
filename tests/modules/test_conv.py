"""A re-parameterised convolution is one convolution, to the border."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.modules.conv import RepConv, merge

pytestmark = pytest.mark.usefixtures("x64")
LAYER = RepConv(6, jnp.dtype("float64"))


@pytest.fixture(scope="module")
def made():
    """(variables, images): no parameter or statistic is what it starts as."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(0.5, 1, (2, 3, 5, 4, 4)))  # [B, T, H, W, C]
        init = functools.partial(LAYER.init, jax.random.key(0), train=False)
        shapes = jax.eval_shape(init, x)

        def leaf(path, want):
            value = rng.normal(0.3, 1, want.shape)
            return jnp.asarray(value**2 + 0.1 if path[-1].key == "var" else value)

        return jax.tree_util.tree_map_with_path(leaf, shapes), x


def numbers(tree):
    return jax.tree.map(np.asarray, tree)


def apart(variables, x, stats):
    """As trained, in numpy: 1x1, BN, a border of what BN makes of 0, depthwise, 1x1."""
    p = numbers(variables["params"])

    def norm(name, y):
        factor = p[name]["scale"] / np.sqrt(stats[name]["var"] + 1e-5)
        return (y - stats[name]["mean"]) * factor + p[name]["bias"]

    y = norm("in_bn", x @ p["in_linear"]["kernel"])
    edge = norm("in_bn", np.zeros(4))
    padded = np.empty((*y.shape[:2], 7, 6, 4))
    padded[...] = edge
    padded[:, :, 1:-1, 1:-1] = y
    depth = p["depth_conv"]["kernel"]
    y = sum(
        padded[:, :, i : i + 5, j : j + 4] * depth[i, j, 0] for i, j in np.ndindex(3, 3)
    )
    return norm("out_bn", y @ p["out_linear"]["kernel"])


def one_convolution(kernel, bias, x):
    image = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)])
    y = sum(
        image[:, :, i : i + 5, j : j + 4] @ kernel[i, j] for i, j in np.ndindex(3, 3)
    )
    return y + bias


def test_it_is_three_maps_and_two_norms_with_a_border(made):
    variables, x = made
    got = LAYER.apply(variables, x, False)
    assert got.shape == (2, 3, 5, 4, 6)
    want = apart(variables, np.asarray(x), numbers(variables["batch_stats"]))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("of", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_merged_it_is_one_convolution_to_the_border(made, of):
    variables, x = made
    params, stats = (
        jax.tree.map(of, variables[key]) for key in ("params", "batch_stats")
    )
    kernel, bias = merge(params, stats)
    assert kernel.shape == (3, 3, 4, 6) and bias.shape == (6,)
    assert isinstance(kernel, np.ndarray) == (of is np.asarray)
    want = np.asarray(LAYER.apply(variables, x, False))
    got = one_convolution(np.asarray(kernel), np.asarray(bias), np.asarray(x))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


def test_in_training_the_border_is_by_the_batch_as_well(made):
    variables, x = made
    got, kept = LAYER.apply(variables, x, True, mutable=["batch_stats"])
    x, p = np.asarray(x), numbers(variables["params"])
    y = x @ p["in_linear"]["kernel"]
    stats = {"in_bn": dict(mean=y.mean((0, 1, 2, 3)), var=y.var((0, 1, 2, 3)))}
    # what goes into the second norm, by a first one that changes nothing
    nothing = dict(mean=np.zeros(6), var=np.ones(6) - 1e-5)
    plain = {**variables["params"], "out_bn": dict(scale=np.ones(6), bias=np.zeros(6))}
    z = apart({"params": plain}, x, stats | {"out_bn": nothing})
    stats["out_bn"] = dict(mean=z.mean((0, 1, 2, 3)), var=z.var((0, 1, 2, 3)))
    want = apart(variables, x, stats)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * np.abs(want).max())
    for name, n in (("in_bn", 2 * 3 * 5 * 4), ("out_bn", 2 * 3 * 5 * 4)):
        old = variables["batch_stats"][name]
        new = kept["batch_stats"][name]
        var = stats[name]["var"] * n / (n - 1)
        np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * var)
        mean = 0.9 * old["mean"] + 0.1 * stats[name]["mean"]
        np.testing.assert_allclose(new["mean"], mean, atol=1e-12)
