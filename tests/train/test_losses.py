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
