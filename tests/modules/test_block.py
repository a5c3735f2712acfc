"""The block put together by hand, from what its submodules say they computed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.functional import neurons
from a2os2a_jax.modules import attention, neuron
from a2os2a_jax.modules.block import SHORTCUTS, Block

pytestmark = pytest.mark.usefixtures("x64")
B, T, N, D = 4, 3, 6, 16
KEY = jax.random.key(0)


def fire(u):
    return np.asarray(neurons.unroll(neurons.lif_step, neurons.lif_init, u, axis=1))


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def membranes(batch):
    """Spikes and membranes [batch, T, N, D]."""
    rng = np.random.default_rng(0)
    u = jnp.asarray(rng.normal(0.5, 1, (batch, T, N, D)))
    return jnp.asarray(rng.uniform(size=u.shape) < 0.3, jnp.float64), u


def make(shortcut="full", kind="a2os2a", **options):
    return Block(
        dim=D,
        heads=2,
        attention=attention.resolve(kind),
        neuron=neuron.resolve(None),
        shortcut=shortcut,
        mlp_ratio=4,
        dtype=jnp.dtype("float64"),
        **options,
    )


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_a_block_whose_spikes_nobody_reads_makes_none(shortcut):
    """And hands on the same membrane, in front of that neuron, with either shortcut."""
    inputs = membranes(2)
    block, silent = make(shortcut), make(shortcut, fires=False)
    variables = block.init(KEY, *inputs, False)
    how = dict(mutable=["spikes"])
    (s, _), kept = block.apply(variables, *inputs, False, **how)
    (nothing, u), left = silent.apply(variables, *inputs, False, **how)
    assert nothing is None
    np.testing.assert_array_equal(fire(u), s)
    assert set(kept["spikes"]) - set(left["spikes"]) == {"out_neuron"}


@pytest.fixture(scope="module")
def results():
    """{(shortcut, kind): (s, u, (S, U), kept)} in training mode."""
    rng = np.random.default_rng(0)

    def leaf(path, want):
        value = rng.normal(0, 0.1, want.shape)
        return jnp.asarray(value + (path[-1].key in ("scale", "var")))

    with jax.enable_x64(True):
        s, u = membranes(B)
        blocks = {
            (shortcut, kind): make(shortcut, kind)
            for shortcut in SHORTCUTS
            for kind in ("a2os2a", "none")
        }
        variables = {}
        for (_, kind), block in blocks.items():
            if kind not in variables:
                shapes = jax.eval_shape(lambda b=block: b.init(KEY, s, u, True))
                variables[kind] = jax.tree_util.tree_map_with_path(leaf, shapes)

        @jax.jit
        def run(s, u):
            return {
                key: block.apply(
                    variables[key[1]],
                    s,
                    u,
                    True,
                    mutable=["spikes", "intermediates", "batch_stats"],
                    capture_intermediates=True,
                )
                for key, block in blocks.items()
            }

        return {key: (s, u, *r) for key, r in jax.device_get(run(s, u)).items()}


@pytest.mark.parametrize("kind", ["a2os2a", "none"])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_equations_15_to_17(results, shortcut, kind):
    s, u, (got_s, got_u), kept = results[shortcut, kind]
    inside = kept["intermediates"].items()
    out = {name: tree["__call__"][0] for name, tree in inside if name != "__call__"}
    assert ("attention" in out) == (kind != "none")
    middle = out["attention"] + u if kind != "none" else u
    np.testing.assert_array_equal(out["mid_neuron"], fire(middle))
    final = out["mlp"] + middle
    np.testing.assert_array_equal(got_s, fire(final))
    close(got_u, final if shortcut == "full" else middle)
    for spikes in jax.tree.leaves(kept["spikes"]):
        assert 0.02 < np.mean(spikes != 0) < 0.7
    assert np.abs(final - middle).max() > 0.1 and (got_s != out["mid_neuron"]).any()


def test_the_mlp_is_two_linear_maps_with_norms_and_a_neuron_between(results):
    _, _, _, kept = results["full", "a2os2a"]
    inside = kept["intermediates"]["mlp"]
    out = {name: tree["__call__"][0] for name, tree in inside.items() if name[0] == "f"}
    assert set(out) == {"fc1_linear", "fc1_bn", "fc1_neuron", "fc2_linear", "fc2_bn"}
    assert out["fc1_bn"].shape == (B, T, N, 4 * D)
    np.testing.assert_array_equal(out["fc1_neuron"], fire(out["fc1_bn"]))
    np.testing.assert_array_equal(inside["__call__"][0], out["fc2_bn"])


def test_the_shortcuts_give_the_same_spikes_and_another_membrane(results):
    _, _, (s, u), _ = results["full", "a2os2a"]
    _, _, (other_s, other_u), _ = results["attention", "a2os2a"]
    np.testing.assert_array_equal(s, other_s)
    assert np.abs(u - other_u).max() > 0.1


def test_a_dropped_path_adds_nothing_or_more():
    """Both branches, each example on its own, at all steps alike."""
    rate, inputs = 0.25, membranes(64)
    block = make(drop_path=rate)
    variables = block.init(KEY, *inputs, False)

    @jax.jit
    def run(key):
        return block.apply(
            variables,
            *inputs,
            True,
            rngs={"drop_path": key},
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )

    _, kept = run(jax.random.key(1))
    inside = kept["intermediates"]
    out = {
        name: tree["__call__"] for name, tree in inside.items() if name != "__call__"
    }
    before = [out["attention"][0], out["mlp"][0]]
    chosen = []
    for branch, dropped in zip(before, out["Dropout_0"], strict=True):
        zero = np.all(dropped == 0, axis=(1, 2, 3))
        np.testing.assert_allclose(
            dropped[~zero], branch[~zero] / (1 - rate), rtol=1e-6
        )
        assert 0.05 < zero.mean() < 0.5
        chosen.append(zero)
    assert (chosen[0] != chosen[1]).any()
    _, again = run(jax.random.key(1))
    chex.assert_trees_all_equal(kept, again)
    _, other = run(jax.random.key(2))
    seen = other["intermediates"]["Dropout_0"]["__call__"][0]
    assert (np.all(seen == 0, axis=(1, 2, 3)) != chosen[0]).any()


def test_nothing_is_dropped_in_evaluation_or_without_a_rate():
    inputs = membranes(2)
    plain, dropping = make(), make(drop_path=0.5)
    variables = plain.init(KEY, *inputs, False)
    want = plain.apply(variables, *inputs, False)
    got = dropping.apply(variables, *inputs, False)
    chex.assert_trees_all_equal(got, want)
    how = dict(mutable=["batch_stats"])
    a, _ = plain.apply(variables, *inputs, True, **how)
    b, _ = make(drop_path=0.0).apply(variables, *inputs, True, **how)
    chex.assert_trees_all_equal(a, b)
