import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from a2os2a_jax import models
from a2os2a_jax.train import optim


def test_schedule_by_hand():
    rate = optim.schedule(
        lr=1.0, warmup_lr=0.2, min_lr=0.1, warmup_steps=4, total_steps=12
    )
    by_hand = {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 4: 1.0, 8: 0.55, 12: 0.1, 99: 0.1}
    got = {step: float(rate(step)) for step in by_hand}
    assert got == pytest.approx(by_hand, rel=1e-6)
    tail = [float(rate(step)) for step in range(4, 13)]
    assert tail == sorted(tail, reverse=True)


def test_without_warmup_the_first_step_has_the_peak_rate():
    rate = optim.schedule(
        lr=1.0, warmup_lr=0.2, min_lr=0.1, warmup_steps=0, total_steps=8
    )
    assert [float(rate(s)) for s in (0, 4, 8)] == pytest.approx([1.0, 0.55, 0.1])


@pytest.mark.parametrize("warmup_steps", [-1, 8, 9])
def test_a_warmup_has_to_be_shorter_than_the_training(warmup_steps):
    with pytest.raises(
        ValueError, match=f"got {warmup_steps} steps.* fewer than the 8"
    ):
        optim.schedule(
            lr=1.0,
            warmup_lr=0.0,
            min_lr=0.0,
            warmup_steps=warmup_steps,
            total_steps=8,
        )


@pytest.fixture(scope="module")
def params():
    """Ones, in the shape of a model with every kind of parameter there is."""
    model = models.build(
        "columnar",
        "1-16",
        num_classes=3,
        image_size=8,
        timesteps=2,
        heads=2,
        neuron=dict(learn_tau=True),
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes["params"])


def test_weight_decay_moves_kernels_and_nothing_else(params):
    tx = optim.adamw(lambda step: 0.5, weight_decay=0.1)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(nothing, tx.init(params), params)
    after = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        optax.apply_updates(params, updates)
    ):
        after.setdefault(path[-1].key, []).append(np.unique(leaf).tolist())
    assert after.keys() == {"kernel", "bias", "scale", "w"}  # w: time constants
    for name, values in after.items():
        expected = 1 - 0.5 * 0.1 if name == "kernel" else 1
        for value in values:
            assert value == pytest.approx([expected], abs=0 if expected == 1 else 1e-6)


def _two_steps(tx, gradients):
    params = {"bias": jnp.zeros(2)}
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update({"bias": jnp.array(gradient)}, state, params)
    return np.asarray(updates["bias"])


def test_clip_limits_the_global_norm_before_adam_sees_it():
    # norms 5 and 0.5: the first is scaled to 1, the second is left alone
    def rate(step):
        return 1.0

    clipped = optim.adamw(rate, weight_decay=0.0, clip=1.0)
    plain = optim.adamw(rate, weight_decay=0.0)
    got = _two_steps(clipped, [[3.0, 4.0], [-0.3, 0.4]])
    by_hand = _two_steps(plain, [[0.6, 0.8], [-0.3, 0.4]])
    np.testing.assert_allclose(got, by_hand, rtol=1e-5)
    unclipped = _two_steps(plain, [[3.0, 4.0], [-0.3, 0.4]])
    assert np.abs(got - unclipped).max() > 0.05


def test_one_step_of_adamw_by_hand():
    # the first step of Adam is g / (|g| + eps), whatever the size of g
    tx = optim.adamw(lambda step: 0.25, weight_decay=0.1)
    params = {"kernel": jnp.array([2.0, -4.0]), "bias": jnp.array([2.0, -4.0])}
    gradient = jax.tree.map(lambda x: jnp.array([7.0, -0.03]), params)
    updates, _ = tx.update(gradient, tx.init(params), params)
    np.testing.assert_allclose(updates["bias"], [-0.25, 0.25], rtol=1e-5)
    np.testing.assert_allclose(updates["kernel"], [-0.3, 0.35], rtol=1e-5)


def test_frozen_parameters_stay_and_count_in_no_norm(params):
    frozen = (r"block_\d+/attention/[qk]_linear/kernel", "head/bias")
    how = dict(weight_decay=0.1, clip=1.0)
    tx = optim.adamw(lambda step: 0.5, **how, frozen=frozen)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    still = optim.named(params, frozen)
    assert sum(jax.tree.leaves(still)) == 3
    for name, (fixed, update) in {
        jax.tree_util.keystr(path): pair
        for path, pair in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda a, b: (a, b), still, updates),
            is_leaf=lambda x: isinstance(x, tuple),
        )
    }.items():
        assert (jnp.abs(update).max() == 0) == fixed, name


def test_a_pattern_that_matches_nothing_is_refused(params):
    with pytest.raises(ValueError, match="frozen: 'head' matches no parameter; there"):
        optim.named(params, ["head"])
