import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.functional import neurons
from a2os2a_jax.functional.pooling import max_pool
from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.stem import SPS, Tokens, over_time

KEY = jax.random.key(0)
PAPER = neuron.resolve(None)


def sps(pool, dtype="float64", dim=16):
    return SPS(dim, pool, PAPER, jnp.dtype(dtype))


def variables_of(stem, x, seed=0):
    rng = np.random.default_rng(seed)

    def leaf(path, want):
        value = rng.normal(0, 0.1, want.shape)
        return jnp.asarray(value + (path[-1].key in ("scale", "var")), want.dtype)

    shapes = jax.eval_shape(lambda: stem.init(KEY, x, True))
    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.mark.parametrize(
    "pool, size, side",
    [
        ("0000", 8, 8),
        ("1000", 8, 4),
        ("0001", 8, 4),
        ("0011", 8, 2),
        ("0101", 16, 4),
        ("1111", 16, 1),
        ("1111", 32, 2),
    ],
)
def test_a_pool_halves_the_image(pool, size, side):
    stem = sps(pool, "float32")
    x = jax.ShapeDtypeStruct((2, 3, size, size, 5), jnp.float32)
    u, variables = jax.eval_shape(lambda x: stem.init_with_output(KEY, x, False), x)
    assert u.shape == (2, 3, side * side, 16)
    kernels = {
        k: v["kernel"].shape for k, v in variables["params"].items() if "conv" in k
    }
    assert kernels == {
        "conv_0": (3, 3, 5, 2),
        "conv_1": (3, 3, 2, 4),
        "conv_2": (3, 3, 4, 8),
        "conv_3": (3, 3, 8, 16),
        "rpe_conv": (3, 3, 16, 16),
    }


@pytest.fixture(scope="module")
def by_pool():
    """{pool: (u, kept)} in training mode, of images 8 pixels wide."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 8, 8, 3)))
        made = {pool: sps(pool) for pool in ("0011", "1100", "0001")}
        variables = {pool: variables_of(stem, x) for pool, stem in made.items()}

        @jax.jit
        def run(x):
            return {
                pool: stem.apply(
                    variables[pool],
                    x,
                    True,
                    mutable=["batch_stats", "spikes", "intermediates"],
                    capture_intermediates=True,
                )
                for pool, stem in made.items()
            }

        return jax.device_get(run(x))


@pytest.mark.parametrize("pool", ["0011", "1100", "0001"])
def test_equation_14_by_hand(x64, by_pool, pool):
    """From the outputs of the norms: which neuron reads what, and where pools are."""

    def fire(u):
        u = jnp.asarray(u)
        return np.asarray(neurons.unroll(neurons.lif_step, neurons.lif_init, u, axis=1))

    def pooled(stage, x):
        return np.asarray(max_pool(jnp.asarray(x))) if pool[stage] == "1" else x

    u, kept = by_pool[pool]
    out = {
        name: tree["__call__"][0]
        for name, tree in kept["intermediates"].items()
        if name != "__call__"
    }
    for i in range(3):
        np.testing.assert_array_equal(out[f"neuron_{i}"], fire(out[f"bn_{i}"]))
        size = pooled(i, out[f"neuron_{i}"]).shape[2:4]
        assert out[f"conv_{i + 1}"].shape[2:4] == size
    membrane = pooled(3, out["bn_3"])
    np.testing.assert_array_equal(out["rpe_neuron"], fire(membrane))
    want = membrane + out["rpe_bn"]
    np.testing.assert_allclose(u, want.reshape(u.shape), rtol=1e-12, atol=1e-12)
    assert np.abs(out["rpe_bn"]).max() > 0.1 and np.abs(membrane).max() > 0.1
    for s in jax.tree.leaves(kept["spikes"]):
        assert 0.02 < s.mean() < 0.75


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("which", ["sps", "tokens"])
def test_a_static_input_is_broadcast(x64, which, train):
    stem = sps("0011") if which == "sps" else Tokens(16, jnp.dtype("float64"))
    shape = (2, 1, 8, 8, 3) if which == "sps" else (2, 1, 5, 3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    variables = variables_of(stem, x)
    kept = ["batch_stats", "spikes"]

    @jax.jit
    def both(x):
        static = stem.apply(variables, x, train, repeats=3, mutable=kept)
        sequence = jnp.repeat(x, 3, axis=1)
        return static, stem.apply(variables, sequence, train, mutable=kept)

    got, want = both(x)
    assert got[0].shape == (2, 3, *got[0].shape[2:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, want)
    if train:
        norm = "bn_0" if which == "sps" else "bn"
        before, after = (v["batch_stats"][norm]["var"] for v in (variables, got[1]))
        assert (np.abs(before - after) > 1e-6).all()


def test_tokens_are_a_linear_map_and_a_norm():
    stem = Tokens(16, jnp.dtype("float32"))
    x = jax.ShapeDtypeStruct((2, 3, 5, 7), jnp.float32)
    u, variables = jax.eval_shape(lambda x: stem.init_with_output(KEY, x, False), x)
    assert u.shape == (2, 3, 5, 16)
    assert jax.tree.map(lambda v: v.shape, variables["params"]) == {
        "linear": {"kernel": (7, 16)},
        "bn": {"scale": (16,), "bias": (16,)},
    }


def test_over_time_repeats():
    x = jnp.arange(4.0).reshape(2, 1, 2)
    assert over_time(x, 1) is x
    np.testing.assert_array_equal(over_time(x, 3), np.repeat(x, 3, axis=1))
