import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.train import losses

# softmax [1/4, 3/4]; [1/2, 1/2]; so large that exp overflows
LOGITS = np.array([[0.0, np.log(3)], [5.0, 5.0], [0.0, 2000.0]], np.float32)


@pytest.mark.parametrize("jit", [jax.jit, lambda f, **_: f], ids=["jit", "eager"])
def test_cross_entropy_by_hand(jit):
    loss = jit(losses.cross_entropy)(jnp.asarray(LOGITS), jnp.array([0, 1, 0]))
    np.testing.assert_allclose(loss, [np.log(4), np.log(2), 2000], rtol=1e-6)


def test_smoothing_by_hand():
    # 0.2 of the label over both classes: p = [0.9, 0.1]
    loss = losses.cross_entropy(jnp.asarray(LOGITS[:1]), jnp.array([0]), 0.2)
    by_hand = 0.9 * np.log(4) + 0.1 * np.log(4 / 3)
    np.testing.assert_allclose(loss, [by_hand], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_gradient_is_softmax_minus_target(smoothing):
    logits = jnp.array([[0.3, -1.0, 2.0, 0.0]])
    grad = jax.grad(lambda x: losses.cross_entropy(x, jnp.array([2]), smoothing).sum())(
        logits
    )
    target = np.full(4, smoothing / 4)
    target[2] += 1 - smoothing
    np.testing.assert_allclose(
        grad[0], np.asarray(jax.nn.softmax(logits))[0] - target, atol=1e-6
    )


def test_loss_has_the_precision_of_the_logits(x64):
    logits = jnp.zeros((2, 3), jnp.float64)
    loss = losses.cross_entropy(logits, jnp.array([0, 1], jnp.int32), 0.1)
    assert loss.dtype == jnp.float64
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-15)


def test_tet_by_hand():
    # two steps of one example, label 0: CE ln 4 and ln 2
    logits = jnp.array([[[0.0, np.log(3)], [5.0, 5.0]]])
    entropy = (np.log(4) + np.log(2)) / 2
    distance = ((1 + (np.log(3) - 1) ** 2) / 2 + 16) / 2
    got = losses.tet(logits, jnp.array([0]), mse=0.25)
    np.testing.assert_allclose(got, [0.75 * entropy + 0.25 * distance], rtol=1e-6)


def test_tet_of_one_step_without_the_distance_is_cross_entropy():
    logits = jnp.asarray(LOGITS[:2])
    labels = jnp.array([0, 1])
    want = losses.cross_entropy(logits, labels, 0.1)
    got = losses.tet(logits[:, None], labels, 0.1, mse=0.0)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_tet_is_not_the_loss_of_the_mean():
    logits = jnp.array([[[4.0, 0.0], [-4.0, 0.0]]])
    mean = losses.cross_entropy(logits.mean(1), jnp.array([0]))
    assert losses.tet(logits, jnp.array([0]), mse=0.0) > mean + 1


def test_losses_by_name():
    labels = jnp.array([0, 1])
    one, many = losses.make("cross_entropy", smoothing=0.2), losses.make("tet", mse=0.5)
    assert (one.per_step, many.per_step) == (False, True)
    scores = jnp.asarray(LOGITS[:2])
    want = losses.cross_entropy(scores, labels, 0.2)
    np.testing.assert_array_equal(one.value(scores, labels), want)
    want = losses.tet(scores[:, None], labels, 0.0, 0.5)
    np.testing.assert_array_equal(many.value(scores[:, None], labels), want)


def test_unknown_losses_and_shares_are_refused():
    with pytest.raises(ValueError, match="train.loss: got 'mse', expected cross_ent"):
        losses.make("mse")
    with pytest.raises(ValueError, match="train.tet_mse: got 1.5, expected 0 to 1"):
        losses.make("tet", mse=1.5)


def test_a_distribution_by_hand():
    # softmax [1/4, 3/4], three quarters of the label on the first class
    loss = losses.cross_entropy(jnp.asarray(LOGITS[:1]), jnp.array([[0.75, 0.25]]))
    by_hand = 0.75 * np.log(4) + 0.25 * np.log(4 / 3)
    np.testing.assert_allclose(loss, [by_hand], rtol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_label_and_its_distribution_have_the_same_loss(name, smoothing):
    loss = losses.make(name, smoothing=smoothing)
    scores = jax.random.normal(jax.random.key(0), (4, 4, 4))  # [B, T, C], all alike
    labels = jnp.array([2, 0, 3, 3])
    scores = scores if loss.per_step else scores[:, 0]
    want = loss.value(scores, labels)
    got = loss.value(scores, jax.nn.one_hot(labels, 4))
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_the_loss_of_a_mixture_is_the_mixture_of_losses(name):
    loss = losses.make(name, smoothing=0.1)
    scores = jax.random.normal(jax.random.key(1), (2, 3, 5))
    scores = scores if loss.per_step else scores[:, 0]
    a, b = jnp.array([0, 1]), jnp.array([4, 2])
    mixed = 0.3 * jax.nn.one_hot(a, 5) + 0.7 * jax.nn.one_hot(b, 5)
    want = 0.3 * loss.value(scores, a) + 0.7 * loss.value(scores, b)
    np.testing.assert_allclose(loss.value(scores, mixed), want, rtol=1e-5)


def test_distributions_over_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"got labels \(2, 1\) for scores \(2, 3\)"):
        losses.cross_entropy(jnp.zeros((2, 3)), jnp.ones((2, 1)))
