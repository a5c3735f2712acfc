import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.functional import spikes, surrogate

LEVELS = 4
WEIGHT = jnp.array(np.random.default_rng(0).integers(-50, 50, (6, 5)), jnp.float32)


def draw(low, high, dtype=jnp.float32):
    s = np.random.default_rng(1).integers(low, high, (7, 6), endpoint=True)
    return jnp.asarray(s, dtype)


# --- slots and planes -----------------------------------------------------------------


def test_slots_worked_by_hand():
    slots = spikes.expand(jnp.array([0.0, 1.0, 3.0]), 3)
    np.testing.assert_array_equal(slots, [[0, 1, 1], [0, 0, 1], [0, 0, 1]])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_expand_is_binary_and_collapse_its_inverse(axis, dtype):
    s = draw(0, LEVELS, dtype)
    slots = spikes.expand(s, LEVELS, axis=axis)
    assert slots.dtype == s.dtype and slots.shape[axis] == LEVELS
    assert set(np.unique(slots).tolist()) == {0, 1}
    np.testing.assert_array_equal(spikes.collapse(slots, axis=axis), s)


def test_weights_of_an_integer_spike_are_those_of_its_slots_summed():
    s = draw(0, LEVELS)
    slots = spikes.expand(s, LEVELS)
    np.testing.assert_array_equal((slots @ WEIGHT).sum(0), s @ WEIGHT)


def test_weights_of_a_ternary_spike_are_those_of_its_planes_subtracted():
    s = draw(-1, 1)
    plus, minus = spikes.planes(s)
    np.testing.assert_array_equal(plus @ WEIGHT - minus @ WEIGHT, s @ WEIGHT)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
def test_planes_are_binary_exclusive_and_subtract_to_the_spike(dtype):
    s = draw(-1, 1, dtype)
    plus, minus = spikes.planes(s)
    assert plus.dtype == minus.dtype == s.dtype
    for plane in plus, minus:
        assert set(np.unique(plane).tolist()) == {0, 1}
    assert not (plus * minus).any()
    np.testing.assert_array_equal(plus - minus, s)


def test_no_slots_are_refused():
    with pytest.raises(ValueError, match="levels is 0, expected an integer >= 1"):
        spikes.expand(jnp.zeros(3), 0)


# --- names ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", spikes.KINDS)
def test_a_tag_changes_neither_value_nor_gradient(kind):
    s = draw(-1, 1)
    np.testing.assert_array_equal(spikes.tag(s, kind), s)
    gradient = jax.grad(lambda s: (spikes.tag(s, kind) * s).sum())(s)
    np.testing.assert_array_equal(gradient, 2 * s)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'quaternary', expected one of .*'binary'"):
        spikes.tag(jnp.zeros(3), "quaternary")


def block(kind):
    def loss(weight, x):
        s = surrogate.atan()(x @ weight - 1)
        return jnp.sin(spikes.tag(s, kind) @ weight.T).sum()

    return loss


POLICIES = {  # kinds named: kinds kept
    (): spikes.KINDS,
    ("binary",): ("binary",),
    ("ternary", "integer"): ("ternary", "integer"),
}


@pytest.mark.parametrize("kind", spikes.KINDS)
@pytest.mark.parametrize("named", POLICIES)
def test_checkpoint_keeps_the_spikes_named_and_no_others(named, kind, capsys):
    kept = jax.checkpoint(block(kind), policy=spikes.save_spikes(*named))
    jax.ad_checkpoint.print_saved_residuals(kept, WEIGHT / 50, draw(0, 1))
    residuals = capsys.readouterr().out.splitlines()
    computed = [line for line in residuals if "from the argument" not in line]
    assert len(residuals) > len(computed)
    assert len(computed) == (kind in POLICIES[named])
    assert all(line.endswith("(tag)") for line in computed)  # the name from jax 0.10.2


@pytest.mark.parametrize("named", POLICIES)
def test_checkpoint_leaves_the_gradient_as_it_was(named):
    arguments = WEIGHT / 50, draw(0, 1)
    kept = jax.checkpoint(block("binary"), policy=spikes.save_spikes(*named))
    gradients = jax.grad(kept, argnums=(0, 1))(*arguments)
    expected = jax.grad(block("binary"), argnums=(0, 1))(*arguments)
    for got, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
        assert jnp.abs(wanted).max() > 0.1


def test_quantise_by_hand():
    x = jnp.array([0.0, 0.24, 0.26, 0.75, 1.25, 1.4, 9.0, -3.0])
    want = [0.0, 0.0, 0.5, 1.0, 1.0, 1.5, 1.5, 0.0]  # ties go to the even level
    np.testing.assert_array_equal(spikes.quantise(x, 2, 0.5), want)
    np.testing.assert_array_equal(spikes.quantise(x, 1, 1.0), np.array(want) >= 0.75)


def test_many_bits_are_no_rounding_and_one_has_two_levels():
    x = jax.random.uniform(jax.random.key(0), (100,))
    fine = spikes.quantise(x, 20, 2.0**-20)
    np.testing.assert_allclose(fine, x, atol=2.0**-21)
    assert set(np.unique(spikes.quantise(x, 1, 0.5))) == {0.0, 0.5}
    assert spikes.quantise(x.astype(jnp.bfloat16), 3, 0.125).dtype == jnp.bfloat16


def test_quantise_needs_a_bit():
    with pytest.raises(ValueError, match="bits is 0, expected an integer >= 1"):
        spikes.quantise(jnp.ones(1), 0, 1.0)
