import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.analysis import rates

# [B, T, N] = [2, 2, 2]: by hand, 5 of 8 fire, 3 up and 2 down; t = 0: 3 of 4, t = 1: 2
S = np.array([[[1, -1], [0, 1]], [[1, 0], [-1, 0]]], np.float32)
TREE = {"stem": {"neuron_0": {"out": (S,)}}, "head": {"out": (np.zeros((2, 2, 3)),)}}


def test_firing_rates_by_hand():
    assert rates.firing_rates(TREE) == {"stem/neuron_0": 5 / 8, "head": 0.0}


def test_rates_per_step_by_hand():
    per_step = rates.firing_rates_per_step(TREE)
    np.testing.assert_array_equal(per_step["stem/neuron_0"], [3 / 4, 2 / 4])
    np.testing.assert_array_equal(per_step["head"], [0, 0])


def test_ternary_splits_by_sign():
    assert rates.ternary_rates(TREE) == {
        "stem/neuron_0": (3 / 8, 2 / 8),
        "head": (0, 0),
    }


def test_a_multi_level_spike_counts_once():
    tree = {"n": {"out": (np.array([[[0, 3], [2, 0]]]),)}}
    assert rates.firing_rates(tree) == {"n": 0.5}


def test_per_step_averages_to_the_whole_with_space():
    s = np.random.default_rng(0).integers(-1, 2, (3, 4, 5, 6, 7)).astype(np.float32)
    tree = {"n": {"out": (s,)}}
    per_step = rates.firing_rates_per_step(tree)["n"]
    np.testing.assert_allclose(per_step, (s != 0).mean((0, 2, 3, 4)), rtol=1e-6)
    np.testing.assert_allclose(
        per_step.mean(), rates.firing_rates(tree)["n"], rtol=1e-6
    )


def test_jit_equals_eager():
    for per_step in (False, True):
        eager = rates.measure_rates(TREE, per_step)
        jitted = jax.jit(rates.measure_rates, static_argnums=1)(TREE, per_step)
        assert jitted.keys() == eager.keys()
        chex.assert_trees_all_equal(dict(jitted), dict(eager))
    near = jax.jit(rates.measure_near_threshold)(TREE)
    assert float(near["stem/neuron_0"]) == 3 / 8


def test_near_threshold_is_strict_and_two_sided():
    u = np.array([[[-1.0, -0.99, 0.0, 0.99, 1.0, 5.0, -7.0, 1.01]]])
    tree = {"n": {"out": (u,)}}
    assert rates.near_threshold(tree) == {"n": 3 / 8}
    assert rates.near_threshold(tree, width=2.0) == {"n": 6 / 8}


@pytest.mark.parametrize("kept", [(1, 0), (0, 1), (1, 1)])
def test_a_mask_leaves_examples_out(kept):
    mask = np.array(kept, np.float32)
    part = S[mask > 0]
    for per_step in (False, True):
        axes = (0, 2) if per_step else None
        got = rates.measure_rates({"n": {"out": (S,)}}, per_step, mask)["n"]
        np.testing.assert_allclose(got.rate, (part != 0).mean(axes))
        np.testing.assert_allclose(got.minus, (part < 0).mean(axes))
    near = rates.measure_near_threshold({"n": {"out": (S,)}}, 1.0, mask)["n"]
    assert float(near) == (part == 0).mean()


def test_reads_what_flax_sows():
    class Neuron(nn.Module):
        @nn.compact
        def __call__(self, x):
            s = (x > 0).astype(x.dtype)
            self.sow("spikes", "out", s)
            return s

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            shared = Neuron(name="shared")
            x = shared(Neuron(name="first")(x) - 0.5)
            return shared(x - 2)

    x = jnp.array([[[1.0, -1.0], [1.0, 1.0]]])
    _, sown = Model().apply({}, x, mutable=["spikes"])
    assert rates.firing_rates(sown["spikes"]) == {
        "first": 0.75,
        "shared#0": 0.75,
        "shared#1": 0.0,
    }


def test_errors_name_what_was_got():
    with pytest.raises(ValueError, match="empty collection"):
        rates.firing_rates({})
    with pytest.raises(ValueError, match=r"stem/n has shape \(3,\), expected \[B, T"):
        rates.near_threshold({"stem": {"n": {"out": (np.zeros(3),)}}})
