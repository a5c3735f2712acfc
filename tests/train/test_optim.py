import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

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
    tx = optim.make(lambda step: 0.5, weight_decay=0.1)
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

    clipped = optim.make(rate, weight_decay=0.0, clip=1.0)
    plain = optim.make(rate, weight_decay=0.0)
    got = _two_steps(clipped, [[3.0, 4.0], [-0.3, 0.4]])
    by_hand = _two_steps(plain, [[0.6, 0.8], [-0.3, 0.4]])
    np.testing.assert_allclose(got, by_hand, rtol=1e-5)
    unclipped = _two_steps(plain, [[3.0, 4.0], [-0.3, 0.4]])
    assert np.abs(got - unclipped).max() > 0.05


def test_one_step_of_adamw_by_hand():
    # the first step of Adam is g / (|g| + eps), whatever the size of g
    tx = optim.make(lambda step: 0.25, weight_decay=0.1)
    params = {"kernel": jnp.array([2.0, -4.0]), "bias": jnp.array([2.0, -4.0])}
    gradient = jax.tree.map(lambda x: jnp.array([7.0, -0.03]), params)
    updates, _ = tx.update(gradient, tx.init(params), params)
    np.testing.assert_allclose(updates["bias"], [-0.25, 0.25], rtol=1e-5)
    np.testing.assert_allclose(updates["kernel"], [-0.3, 0.35], rtol=1e-5)


def test_commas_in_brackets_are_the_patterns_own():
    text = r"block_\d{1,2}/.*, head/(bias|a,b), stem/conv_[0,1]/kernel,"
    parts = (r"block_\d{1,2}/.*", "head/(bias|a,b)", "stem/conv_[0,1]/kernel")
    assert optim.patterns(text) == parts and optim.patterns(None) == ()


def test_frozen_parameters_stay_and_count_in_no_norm(params):
    frozen = (r"block_\d+/attention/[qk]_linear/kernel", "head/bias")
    how = dict(weight_decay=0.1, clip=1.0)
    tx = optim.make(lambda step: 0.5, **how, frozen=frozen)
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
    with pytest.raises(
        ValueError, match="optim.freeze: 'head' matches no parameter; there"
    ):
        optim.named(params, ["head"])


# ---- schedules, other optimizers, factors per layer


@pytest.mark.parametrize(
    "name, by_hand",
    {
        "cosine": {0: 0.2, 2: 0.6, 4: 1.0, 8: 0.55, 12: 0.1, 99: 0.1},
        "linear": {0: 0.2, 2: 0.6, 4: 1.0, 6: 0.775, 8: 0.55, 12: 0.1, 99: 0.1},
        "constant": {0: 0.2, 2: 0.6, 4: 1.0, 8: 1.0, 12: 1.0, 99: 1.0},
    }.items(),
)
def test_schedules_by_hand(name, by_hand):
    how = dict(lr=1.0, warmup_lr=0.2, min_lr=0.1, warmup_steps=4, total_steps=12)
    rate = optim.schedule(**how, name=name)
    got = {step: float(rate(step)) for step in by_hand}
    assert got == pytest.approx(by_hand, rel=1e-6)


def test_a_name_that_is_unknown_is_refused():
    how = dict(lr=1.0, warmup_lr=0.2, min_lr=0.1, warmup_steps=4, total_steps=12)
    with pytest.raises(ValueError, match="optim.schedule: got 'step', expected one of"):
        optim.schedule(**how, name="step")
    with pytest.raises(
        ValueError, match="optim.name: got 'adam', expected one of adam"
    ):
        optim.make(lambda step: 0.1, name="adam", weight_decay=0.0)


@pytest.mark.parametrize(
    "key, value", [("momentum", 1.0), ("b2", -0.1), ("layer_decay", 0.0)]
)
def test_a_number_out_of_its_range_is_refused(key, value):
    with pytest.raises(ValueError, match=f"optim.{key}: got {value}, expected 0 <"):
        optim.make(lambda step: 0.1, weight_decay=0.0, **{key: value})


def test_sgd_has_no_second_moment():
    with pytest.raises(ValueError, match="optim.b2: got 0.9, expected none with sgd"):
        optim.make(lambda step: 0.1, name="sgd", weight_decay=0.0, b2=0.9)


def test_two_steps_of_sgd_by_hand():
    # heavy ball: m = 0.9 m + g + 0.1 w, w = w - 0.5 m; the bias has no decay
    tx = optim.make(lambda step: 0.5, name="sgd", weight_decay=0.1)
    params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
    gradient = jax.tree.map(jnp.ones_like, params)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["bias"], [2 - 0.5 - 0.5 * 1.9], rtol=1e-6)
    m = 1.2
    w = 2 - 0.5 * m
    m = 0.9 * m + 1 + 0.1 * w
    np.testing.assert_allclose(params["kernel"], [w - 0.5 * m], rtol=1e-6)


def test_one_step_of_lamb_by_hand():
    # Adam's first step is sign(g); with decay u = sign(g) + 0.1 w, and the step has the
    # length of w: w - 0.25 |w| u / |u|
    tx = optim.make(lambda step: 0.25, name="lamb", weight_decay=0.1)
    params = {"kernel": jnp.array([3.0, -4.0])}
    updates, _ = tx.update({"kernel": jnp.array([7.0, -0.3])}, tx.init(params), params)
    u = np.array([1.3, -1.4])
    by_hand = -0.25 * 5 * u / np.linalg.norm(u)
    np.testing.assert_allclose(updates["kernel"], by_hand, rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_every_optimizer_goes_down(name):
    tx = optim.make(lambda step: 0.05, name=name, weight_decay=0.01, clip=10.0)
    target = jnp.array([1.0, -2.0, 0.5])
    params = {"kernel": jnp.ones(3)}
    state = tx.init(params)

    def loss(p):
        return jnp.square(p["kernel"] - target).sum()

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    before = loss(params)
    for _ in range(60):
        params, state = step(params, state)
    assert loss(params) < 0.1 * before


def test_each_layer_below_the_head_has_its_rate_times_the_decay():
    names = ["stem/conv_0/kernel", "block_0/a/kernel", "block_1/a/kernel"]
    names += ["head/kernel", "block_10/a/bias", "head_neuron/w", "stem_neuron/w"]
    nested = {}
    for name in names:
        *parents, last = name.split("/")
        room = nested
        for parent in parents:
            room = room.setdefault(parent, {})
        room[last] = jnp.ones(1)
    scales = optim.layer_scales(nested, 0.5)
    assert scales["head"]["kernel"] == scales["head_neuron"]["w"] == 1
    assert scales["block_10"]["a"]["bias"] == 0.5
    assert scales["block_1"]["a"]["kernel"] == 0.5**10
    assert scales["block_0"]["a"]["kernel"] == 0.5**11
    assert scales["stem"]["conv_0"]["kernel"] == scales["stem_neuron"]["w"] == 0.5**12
    plain = optim.make(lambda step: 0.5, weight_decay=0.1)
    tx = optim.make(lambda step: 0.5, weight_decay=0.1, layer_decay=0.5)
    grads = jax.tree.map(lambda x: 3 * x, nested)
    a, _ = plain.update(grads, plain.init(nested), nested)
    b, _ = tx.update(grads, tx.init(nested), nested)
    jax.tree.map(
        lambda x, y, s: np.testing.assert_allclose(x * s, y, rtol=1e-6), a, b, scales
    )


def test_blocks_of_stages_are_counted_through():
    names = ["stage_1/embed/a", "stage_1/block_0/a", "stage_1/block_1/a"]
    names += ["stage_2/embed/a", "stage_2/block_0/a", "head/a"]
    nested = traverse_util.unflatten_dict({n: jnp.ones(1) for n in names}, sep="/")
    scales = traverse_util.flatten_dict(optim.layer_scales(nested, 0.5), sep="/")
    assert [scales[name] for name in names] == [0.5**n for n in (4, 3, 2, 1, 1, 0)]


def test_patterns_are_separated_by_commas():
    assert optim.patterns("stem/.*, head/bias,") == ("stem/.*", "head/bias")
    assert optim.patterns(None) == optim.patterns("") == ()


def test_a_pattern_that_is_no_regular_expression_is_refused(params):
    with pytest.raises(ValueError, match="optim.freeze: got '.', expected a regular"):
        optim.named(params, ["("])
