import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.data import mix

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(0)
STATIC, VIDEO = (6, 8, 10, 2), (6, 3, 8, 10, 2)
ON, OFF = jnp.array(True), jnp.array(False)
KINDS = {
    "mixup": {"mixup": 0.5},
    "cutmix": {"cutmix": 1.0},
    "both": {"mixup": 0.8, "cutmix": 1.0},
}


@functools.cache
def built(name):
    return jax.jit(mix.build(**KINDS[name]))


def batch(shape, seed=1):
    images = jax.random.normal(jax.random.key(seed), shape)
    return images, jax.nn.one_hot(jnp.arange(shape[0]), shape[0])


def keys(number):
    return jax.random.split(KEY, number)


def test_nothing_to_do_is_none():
    assert mix.build() is None


@pytest.mark.parametrize(
    ("name", "shape"), [("mixup", STATIC), ("cutmix", VIDEO), ("both", VIDEO)]
)
def test_off_is_the_identity_to_the_bit_and_on_is_not(name, shape):
    fn, (x, y) = built(name), batch(shape)
    images, targets = fn(KEY, x, y, OFF)
    np.testing.assert_array_equal(images, x)
    np.testing.assert_array_equal(targets, y)
    images, targets = fn(KEY, x, y, ON)
    assert (images != x).any() and (targets != y).any()
    assert images.shape == x.shape and images.dtype == x.dtype
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    again = fn(KEY, x, y, ON)
    np.testing.assert_array_equal(again[0], images)
    assert fn._cache_size() <= 2  # one program a shape, on or off


def test_mixup_by_hand():
    # two examples, 1 and 0, of classes 0 and 1: what comes out is lambda itself
    x = jnp.array([1.0, 0.0]).reshape(2, 1, 1, 1)
    images, targets = built("mixup")(KEY, x, jnp.eye(2), ON)
    lam = images[0, 0, 0, 0]
    assert 0 < lam < 1
    np.testing.assert_allclose(images.ravel(), [lam, 1 - lam], rtol=1e-6)
    np.testing.assert_allclose(targets, [[lam, 1 - lam], [1 - lam, lam]], rtol=1e-6)


def test_the_partner_is_the_one_at_the_same_place_from_the_end():
    x, y = batch((5, 8, 10, 2))
    images, targets = built("mixup")(KEY, x, y, ON)
    lam = targets[0, 0]
    want = lam * x + (1 - lam) * x[::-1]
    np.testing.assert_allclose(images, want, atol=1e-6)
    np.testing.assert_allclose(images[2], x[2], atol=1e-6)  # with itself
    np.testing.assert_allclose(targets[2], y[2], atol=1e-6)


def test_cutmix_replaces_one_box_in_all_frames_and_counts_its_pixels():
    x = np.broadcast_to(np.arange(6.0).reshape(6, 1, 1, 1, 1), VIDEO)
    x = jnp.asarray(x, jnp.float32)
    for key in keys(20):
        images, targets = map(np.asarray, built("cutmix")(key, x, jnp.eye(6), ON))
        swapped = images == x[::-1]
        assert (swapped | (images == x)).all()
        box = swapped[0, 0, :, :, 0]
        assert (swapped == box[None, None, :, :, None]).all()
        assert (box == box.any(1)[:, None] & box.any(0)[None, :]).all()
        np.testing.assert_allclose(np.diag(targets), 1 - box.mean(), rtol=1e-6)
        other = np.diag(targets[:, ::-1])
        np.testing.assert_allclose(other, box.mean(), rtol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.75, 1.0])
def test_a_box_that_does_not_stick_out_has_the_area_1_minus_lambda(lam):
    height, width = 64, 96
    boxes = jax.vmap(lambda key: mix.box(key, jnp.float32(lam), height, width))
    area = np.asarray(boxes(keys(3000)).mean((1, 2)))
    side = np.sqrt(1 - lam)
    rounding = 2 / height + 2 / width  # sides lose less than two pixels
    assert 1 - lam - rounding < area.max() <= 1 - lam
    # cut off at a border, a side loses at most half: on average a quarter of its share
    assert abs(area.mean() - (side * (1 - side / 4)) ** 2) < rounding + 0.02


def test_a_box_by_hand():
    # lambda 3/4: sides 4 of 8 and 2 of 5 (2.5, even), around a pixel (y, x)
    places = {
        np.asarray(mix.box(key, jnp.float32(0.75), 8, 5)).tobytes() for key in keys(400)
    }
    want = set()
    for y in range(8):
        for x in range(5):
            box = np.zeros((8, 5), bool)
            box[max(y - 2, 0) : y + 2, max(x - 1, 0) : x + 1] = True
            want.add(box.tobytes())
    assert places == want


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lambda_has_the_moments_of_beta(alpha):
    fn = mix.build(mixup=alpha)
    x = jnp.array([1.0, 0.0]).reshape(2, 1, 1, 1)
    lam = jax.jit(jax.vmap(lambda key: fn(key, x, jnp.eye(2), ON)[1][0, 0]))(keys(4000))
    variance = 1 / (4 * (2 * alpha + 1))
    assert lam.min() >= 0 and lam.max() <= 1
    assert abs(lam.mean() - 0.5) < 5 * np.sqrt(variance / 4000)
    assert abs(lam.var() / variance - 1) < 0.1


def test_with_both_one_of_them_is_done_with_even_chances():
    x = jnp.broadcast_to(jnp.array([1.0, 0.0]).reshape(2, 1, 1, 1), (2, 16, 16, 1))
    fn = mix.build(mixup=1.0, cutmix=1.0)
    once = jax.jit(jax.vmap(lambda key: fn(key, x, jnp.eye(2), ON)))
    images, targets = map(np.asarray, once(keys(1000)))
    cut = ((images == 0) | (images == 1)).all((1, 2, 3, 4))
    assert abs(cut.mean() - 0.5) < 0.08  # 5 sigma
    assert np.ptp(images[~cut], (2, 3)).max() == 0  # mixup is even over the image
    np.testing.assert_allclose(
        images.mean((2, 3))[:, 0, 0], targets[:, 0, 0], atol=1e-5
    )


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_errors(name):
    for alpha in (-0.1, float("inf"), float("nan")):
        with pytest.raises(
            ValueError, match=f"augment.{name}: got .*, expected at lea"
        ):
            mix.build(**{name: alpha})
    with pytest.raises(ValueError, match=r"augment.mixup: got \(4, 33, 43\), expected"):
        built(name)(KEY, *batch((4, 33, 43)), ON)
