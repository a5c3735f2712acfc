import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from a2os2a_jax.data import pipeline
from a2os2a_jax.modules.norm import BatchNorm
from a2os2a_jax.train import losses, step

KEY = jax.random.key(3)
PAYLOAD = np.arange(4, dtype=np.int32)


class Toy(nn.Module):
    """[B, 2] -> [B, 3]; sows x as spikes of a layer, and 2 x as potentials."""

    @nn.compact
    def __call__(self, x, train=False):
        self.sow("spikes", "out", x)
        self.sow("potentials", "out", 2 * x)
        return BatchNorm(name="bn")(nn.Dense(3, name="head")(x), train)


IMAGES = np.array([[1.0, 2], [0, -1], [0.4, 0], [-3, 1]], np.float32)
LABELS = [0, 1, 2, 0]


@pytest.fixture(scope="module")
def split():
    return pipeline.resident_split(IMAGES, LABELS)


@pytest.fixture(scope="module")
def make(split):
    """make(**options) -> (state before the first step, jitted train_step)."""
    tx = optax.sgd(0.5)

    def get(tx=tx, **options):
        model = Toy()
        state = step.init_state(model, tx, jax.random.key(0), jnp.zeros((1, 2)))
        options = {"key": KEY} | options
        return state, jax.jit(
            step.make_train_step(model, tx, lambda n: 0.5 + n, split, **options)
        )

    return get


def test_state_before_the_first_step(make):
    state, _ = make()
    assert state.step == 0 and state.step.dtype == jnp.int32
    assert state.variables.keys() == {"params", "batch_stats"}
    assert set(state.params) == {"head", "bn"}
    np.testing.assert_array_equal(state.batch_stats["bn"]["var"], np.ones(3))


def test_one_step_is_loss_gradient_update_and_statistics(make, split):
    state, train_step = make(loss=losses.make("cross_entropy", smoothing=0.2))
    new, got = train_step(state, split.resident, PAYLOAD)

    def loss_fn(params):  # written out, eager
        h = IMAGES @ params["head"]["kernel"] + params["head"]["bias"][None]
        mean, var = h.mean(0, keepdims=True), h.var(0, keepdims=True)
        y = (h - mean) / jnp.sqrt(var + 1e-5)
        y = y * params["bn"]["scale"][None] + params["bn"]["bias"][None]
        target = 0.8 * np.eye(3)[LABELS] + 0.2 / 3
        return -(target * jax.nn.log_softmax(y)).sum(-1).mean(), (y, h)

    (loss, (y, h)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    np.testing.assert_allclose(got["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(
        got["accuracy"], np.mean(np.argmax(y, -1) == np.array(LABELS))
    )
    np.testing.assert_allclose(got["grad_norm"], optax.tree.norm(grads), rtol=1e-4)
    assert (got["lr"], new.step) == (0.5, 1)
    jax.tree.map(
        lambda p, g, q: np.testing.assert_allclose(p - 0.5 * g, q, atol=1e-5),
        state.params,
        grads,
        new.params,
    )
    running = new.batch_stats["bn"]
    np.testing.assert_allclose(running["mean"], 0.1 * h.mean(0), atol=1e-6)
    np.testing.assert_allclose(
        running["var"], 0.9 + 0.1 * np.var(h, 0, ddof=1), rtol=1e-5
    )


def test_the_rate_is_that_of_the_step(make, split):
    state, train_step = make()
    _, got = train_step(state._replace(step=jnp.int32(7)), split.resident, PAYLOAD)
    assert got["lr"] == 7.5


def test_grad_norm_is_that_before_clipping(make, split):
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    (a, plain), (b, limited) = make(), make(tx=clipped)
    _, want = plain(a, split.resident, PAYLOAD)
    new, got = limited(b, split.resident, PAYLOAD)
    assert got["grad_norm"] == want["grad_norm"] > 0.01
    moved = optax.tree.norm(jax.tree.map(lambda x, y: x - y, b.params, new.params))
    np.testing.assert_allclose(moved, 1e-3, rtol=1e-3)


def test_what_is_frozen_costs_no_gradient_and_counts_in_no_norm(make, split):
    (state, all_of_it), (_, rest) = make(), make(frozen=("head/.*",))
    _, want = all_of_it(state, split.resident, PAYLOAD)
    new, got = rest(state, split.resident, PAYLOAD)
    assert 0 < got["grad_norm"] < want["grad_norm"] and got["loss"] == want["loss"]
    for name, moved in new.params["head"].items():  # plain sgd adds nothing to it
        np.testing.assert_array_equal(moved, state.params["head"][name])

    def flops(train_step):
        lowered = jax.jit(train_step).lower(state, split.resident, PAYLOAD)
        return lowered.compile().cost_analysis()["flops"]

    first = make(frozen=("(?!head/).*",))[1]
    assert flops(first) < 0.95 * flops(all_of_it)


def test_randomness_is_a_function_of_key_and_step(make, split):
    def augment(key, images):
        return images + jax.random.normal(key, images.shape)

    def loss(key, number):
        state, train_step = make(key=key, inputs=step.Inputs(augment))
        state = state._replace(step=jnp.int32(number))
        return float(train_step(state, split.resident, PAYLOAD)[1]["loss"])

    first = loss(KEY, 0)
    assert loss(KEY, 0) == first
    assert len({first, loss(KEY, 1), loss(jax.random.key(4), 0)}) == 3


def test_the_gradient_passes_over_what_the_payload_leaves_out(make, split):
    state, train_step = make()
    other = (np.where(np.arange(4)[:, None] == 3, 99, IMAGES), split.resident[1])
    payload = np.array([0, 1, 2, 0], np.int32)
    a, _ = train_step(state, split.resident, payload)
    b, _ = train_step(state, other, payload)
    chex.assert_trees_all_equal(a.params, b.params)


class Scores(nn.Module):
    """The images are the logits."""

    def __call__(self, x, train=False):
        return x


def test_evaluation_sums_by_hand():
    # right; second of seven; sixth of seven; right but masked
    logits = np.log(
        np.array(
            [
                [0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
                [0.5, 0.2, 0.1, 0.05, 0.05, 0.05, 0.05],
                [0.3, 0.2, 0.15, 0.13, 0.12, 0.06, 0.04],
                [0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
            ]
        )
    )
    split = pipeline.resident_split(logits, [0, 1, 5, 0])
    eval_step = jax.jit(step.make_eval_step(Scores(), split))
    got = eval_step({}, split.resident, PAYLOAD, np.array([1, 1, 1, 0], np.float32))
    assert got["correct"] == 1 and got["correct5"] == 2 and got["count"] == 3
    np.testing.assert_allclose(got["loss"], -np.log(0.4 * 0.2 * 0.06), rtol=1e-5)


def test_what_is_masked_may_be_nan():
    logits = np.array([[1.0, 0], [-9.0, 0]])
    split = pipeline.resident_split(
        logits, [0, 0], decode=lambda x: jnp.where(x < -8, jnp.nan, x)
    )
    eval_step = step.make_eval_step(Scores(), split)
    got = eval_step({}, split.resident, PAYLOAD[:2], jnp.array([1.0, 0]))
    assert np.isfinite(got["loss"]) and got["correct"] == got["count"] == 1


def test_of_few_classes_all_are_among_the_best_five():
    split = pipeline.resident_split(np.eye(3), [0, 0, 0])
    eval_step = step.make_eval_step(Scores(), split)
    got = eval_step({}, split.resident, PAYLOAD[:3], jnp.ones(3))
    assert got["correct"] == 1 and got["correct5"] == got["count"] == 3


def test_activity_by_hand(make, split):
    state, _ = make()
    activity = step.make_activity_step(Toy(), split)
    got = activity(state.variables, split.resident, PAYLOAD, jnp.ones(len(PAYLOAD)))
    # 6 of 8 inputs are not 0, negative ones count; |2 x| < 1 for 0, 0.4 and 0
    fired, entries = got["firing_rate"]["out"]
    near, _ = got["near_threshold"]["out"]
    assert (int(fired.sum()), int(near.sum()), int(entries)) == (6, 3, 2)
    assert fired.shape == near.shape == (4,) and got["counted"].tolist() == [1] * 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite_names_the_leaf_that_is_not(bad):
    tree = {"params": {"a": {"w": jnp.array([1.0, bad])}, "b": jnp.ones(2)}}
    got = jax.jit(step.finite)(tree)
    assert {k: bool(v) for k, v in got.items()} == {
        "params/a/w": False,
        "params/b": True,
    }


# ---- micro-batches, averages, losses over time, dropped paths


def _step(train_step, state, split, payload=PAYLOAD):
    return jax.device_get(train_step(state, split.resident, payload))


class Linear(nn.Module):
    """[B, 2] -> [B, 3], or [B, T, 3] per step; no batch statistics that matter."""

    @nn.compact
    def __call__(self, x, train=False, per_step=False):
        self.variable("batch_stats", "seen", lambda: jnp.zeros(()))
        y = nn.Dense(3, name="head")(x)
        steps = jnp.stack([y, -2 * y, 4 * y], axis=1)
        return steps if per_step else steps.mean(1)


def _linear(split, **options):
    model, tx = Linear(), optax.sgd(0.5)
    how = dict(ema=options.get("ema") is not None)
    state = step.init_state(model, tx, jax.random.key(0), jnp.zeros((1, 2)), **how)
    options = {"key": KEY} | options
    made = step.make_train_step(model, tx, lambda n: 0.5, split, **options)
    return state, jax.jit(made)


@pytest.mark.parametrize("parts", [2, 4])
def test_without_batch_statistics_parts_are_as_good_as_the_whole(split, parts):
    state, whole = _linear(split)
    _, apart = _linear(split, accumulate=parts)
    (a, m), (b, n) = _step(whole, state, split), _step(apart, state, split)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, (a, m), (b, n))
    assert a.step == b.step == 1


def test_batch_normalisation_sees_one_part_at_a_time(make, split):
    state, apart = make(accumulate=2)
    new, got = _step(apart, state, split)
    _, whole = make()
    parts = [PAYLOAD[0::2], PAYLOAD[1::2]]  # every device keeps what it has
    first, a = _step(whole, state, split, parts[0])
    after = state._replace(batch_stats=first.batch_stats)
    second, b = _step(whole, after, split, parts[1])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, new.batch_stats, second.batch_stats)
    jax.tree.map(
        lambda got, x, y: close(got, (x + y) / 2),
        new.params,
        first.params,
        second.params,
    )
    for name in ("loss", "accuracy"):
        close(got[name], (a[name] + b[name]) / 2)
    assert float(got["loss"]) != pytest.approx(
        float(_step(whole, state, split)[1]["loss"])
    )


def test_every_part_draws_its_own_augmentation(split):
    def noise(key, images):
        return jnp.broadcast_to(jax.random.normal(key, ()), images.shape)

    losses_seen = []
    for parts in (1, 2, 4):
        state, made = _linear(split, accumulate=parts, inputs=step.Inputs(noise))
        losses_seen.append(float(_step(made, state, split)[1]["loss"]))
    assert len(set(losses_seen)) == 3


def test_the_average_by_hand(split):
    # d = min(decay, (1 + step) / (10 + step)): 1/10, then 2/11, then the decay
    state, made = _linear(split, ema=0.15)
    chex.assert_trees_all_equal(state.ema, state.variables)
    ema = jax.device_get(state.ema["params"])
    for d in (0.1, 0.15, 0.15):
        state, _ = _step(made, state, split)
        ema = jax.tree.map(lambda a, b, d=d: d * a + (1 - d) * b, ema, state.params)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
        jax.tree.map(close, state.ema["params"], ema)
    assert state.judged is state.ema and set(state.ema) == set(state.variables)


def test_the_average_has_the_statistics_too(make, split):
    model, tx = Toy(), optax.sgd(0.5)
    state = step.init_state(model, tx, KEY, jnp.zeros((1, 2)), ema=True)
    made = step.make_train_step(model, tx, lambda n: 1.0, split, key=KEY, ema=0.9)
    new, _ = _step(jax.jit(made), state, split)
    for name in ("mean", "var"):
        old, now = (s.batch_stats["bn"][name] for s in (state, new))
        want = 0.1 * old + 0.9 * now
        got = new.ema["batch_stats"]["bn"][name]
        np.testing.assert_allclose(got, want, rtol=1e-5)
        assert np.abs(got - now).max() > 1e-3


def test_without_an_average_the_weights_are_judged(make):
    state, _ = make()
    assert state.ema is None and state.judged == state.variables


def test_the_loss_of_every_step_is_that_of_the_model_per_step(split):
    loss = losses.make("tet", mse=0.25)
    state, made = _linear(split, loss=loss)
    _, got = _step(made, state, split)
    scores = Linear().apply(state.variables, IMAGES, per_step=True)
    want = losses.tet(scores, jnp.array(LABELS), mse=0.25).mean()
    np.testing.assert_allclose(got["loss"], want, rtol=1e-5)
    right = np.argmax(scores.mean(1), -1) == np.array(LABELS)
    assert got["accuracy"] == right.mean()


class Dropping(nn.Module):
    """Half of the examples are dropped."""

    @nn.compact
    def __call__(self, x, train=False):
        self.variable("batch_stats", "seen", lambda: jnp.zeros(()))
        how = dict(deterministic=not train, rng_collection="drop_path")
        return nn.Dropout(0.5, (1,), **how)(nn.Dense(3, name="head")(x))


def test_dropped_paths_are_a_function_of_key_and_step(split):
    model, tx = Dropping(), optax.sgd(0.5)
    state = step.init_state(model, tx, jax.random.key(0), jnp.zeros((1, 2)))

    def loss(key, number):
        made = step.make_train_step(model, tx, lambda n: 0.5, split, key=key)
        at = state._replace(step=jnp.int32(number))
        return float(_step(jax.jit(made), at, split)[1]["loss"])

    seen = [loss(KEY, n) for n in range(4)]
    assert len(set(seen)) > 2
    assert seen == [loss(KEY, n) for n in range(4)]


# ---- several steps in one call


def test_how_many_steps_go_at_once_changes_no_number(split):
    model, tx = Toy(), optax.sgd(0.1)
    state = step.init_state(model, tx, KEY, jnp.zeros((1, 2)))
    one = step.make_train_step(model, tx, lambda n: 0.1, split, key=KEY)
    many = jax.jit(step.make_many_steps(one, 4))
    payloads = np.stack([np.roll(PAYLOAD, i)[:3] for i in range(4)])

    def run(*counts):
        at, now, rows = 0, state, []
        for count in counts:
            padded = np.concatenate([payloads[at : at + count], payloads])[:4]
            now, found = many(now, split.resident, padded, np.int32(count))
            rows += [{k: float(v[i]) for k, v in found.items()} for i in range(count)]
            at += count
        return now, rows

    whole, rows = run(4)
    for counts in ((1, 3), (2, 2), (1, 1, 1, 1)):
        again, others = run(*counts)
        chex.assert_trees_all_equal(again, whole)
        assert others == rows
    assert many._cache_size() == 1 and whole.step == 4
    now, one = state, jax.jit(one)
    for payload in payloads:
        now, row = one(now, split.resident, payload)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, now, whole)
    assert rows[-1] == pytest.approx({k: float(v) for k, v in row.items()}, rel=1e-5)


# ---- between the data and the model


def test_mixed_examples_are_learned_as_such(split):
    def mix(key, images, targets, on):
        return images[::-1], jnp.where(on, targets[::-1], targets)

    state, plain = _linear(split)
    _, mixed = _linear(split, inputs=step.Inputs(mix=mix, classes=3))
    (a, m), (b, n) = (_step(f, state, split) for f in (plain, mixed))
    np.testing.assert_allclose(m["loss"], n["loss"], rtol=1e-6)  # all turned round
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), a, b)
    inputs = step.Inputs(mix=mix, classes=3, mix_until=0)
    _, off = _linear(split, inputs=inputs)
    assert float(_step(off, state, split)[1]["loss"]) != pytest.approx(float(m["loss"]))


def test_the_three_kinds_of_draws_have_keys_of_their_own():
    seen = {}

    def augment(key, images):
        seen["augment"] = key
        return images

    def mix(key, images, targets, on):
        seen["mix"] = key
        return images, targets

    inputs = step.Inputs(augment, mix, classes=3)
    batch = {"image": IMAGES, "label": np.asarray(LABELS)}
    images, targets = inputs(batch, KEY, 0)
    assert targets.shape == (4, 3)
    positions = [jax.random.fold_in(KEY, i) for i in range(4096)]
    others = {jax.random.key_data(k).tobytes() for k in positions}
    assert jax.random.key_data(seen["mix"]).tobytes() not in others
    assert seen["augment"] is KEY and step._MIX != step._DROP_PATH


def test_a_label_of_minus_one_is_not_counted():
    labels = np.array([0, -1, 2, 0])
    split = pipeline.resident_split(IMAGES, labels)
    kept = pipeline.resident_split(IMAGES[[0, 2, 3]], labels[[0, 2, 3]])
    model = Toy()
    variables = model.init(KEY, jnp.zeros((1, 2)))
    variables = {k: variables[k] for k in ("params", "batch_stats")}
    make_step = step.make_eval_step
    a = make_step(model, split)(variables, split.resident, PAYLOAD, np.ones(4))
    b = make_step(model, kept)(variables, kept.resident, PAYLOAD[:3], np.ones(3))
    chex.assert_trees_all_close(a, b, rtol=1e-6)
    activity = step.make_activity_step(model, split)
    found = activity(variables, split.resident, PAYLOAD, np.array([1, 1, 0, 1]))
    assert found["counted"].tolist() == [1, 0, 0, 1]


def test_an_average_of_arrays_of_two_shapes_is_refused():
    """They would be stretched to one shape, in silence."""
    old, new = {"w": jnp.zeros(())}, {"w": jnp.ones(3)}
    with pytest.raises(AssertionError, match="shape"):
        step.average(old, new, 0.9, jnp.int32(0))
