import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from a2os2a_jax.data import augment

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(0)
AFFINE = jax.jit(augment.affine)
STATIC, VIDEO = (6, 9, 8, 2), (4, 3, 9, 8, 2)


def images(shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


def move(image, *, shift=(0, 0), rotate=0.0, zoom=1.0, fill=0.0):
    kw = {"rotate": rotate, "zoom": zoom, "fill": fill}
    return np.asarray(AFFINE(image, shift=jnp.array(shift), **kw))


def test_nothing_to_do_is_none():
    assert augment.build() is None


def test_affine_at_zero_is_the_identity_to_the_bit():
    image = images(STATIC[1:])
    np.testing.assert_array_equal(move(image), image)


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (-2, 0), (1, -1)])
def test_a_whole_shift_is_a_roll_with_a_filled_border(shift):
    image = images((9, 8, 2))
    expected = np.roll(image, shift, (0, 1))
    for axis, n in enumerate(shift):  # what came round is border
        border = slice(0, n) if n >= 0 else slice(n, None)
        expected[(slice(None),) * axis + (border,)] = -0.7
    np.testing.assert_allclose(move(image, shift=shift, fill=-0.7), expected, atol=1e-6)


def test_half_a_pixel_is_the_mean_of_two():
    image = jnp.array([2.0, 4.0, 8.0]).reshape(1, 3, 1)
    out = move(image, shift=(0, 0.5), fill=10.0)
    np.testing.assert_allclose(out.ravel(), [6, 3, 6])


@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_right_angles_turn_anticlockwise(turns):
    image = images((7, 7, 2))
    out = move(image, rotate=90.0 * turns)
    np.testing.assert_allclose(out, np.rot90(image, turns), atol=1e-4)


def test_zoom_magnifies_about_the_centre():
    ramp = jnp.broadcast_to(jnp.arange(9.0)[:, None, None] - 4, (9, 9, 1))
    np.testing.assert_allclose(move(ramp, zoom=2.0), ramp / 2, atol=1e-6)
    np.testing.assert_allclose(
        move(ramp, zoom=0.5)[3:6, 3:6], ramp[3:6, 3:6] * 2, atol=1e-6
    )


def test_outside_is_fill_for_each_channel():
    out = move(jnp.ones((4, 4, 2)), shift=(9, 0), fill=(-1.0, 3.0))
    np.testing.assert_allclose(out, np.broadcast_to([-1.0, 3.0], (4, 4, 2)))


def test_a_constant_image_on_its_own_fill_stays_constant():
    fn = augment.build(shift=2, rotate=30, zoom=0.2, fill=-0.8)
    out = fn(KEY, jnp.full((32, 8, 8, 1), -0.8))
    np.testing.assert_allclose(out, -0.8, atol=1e-6)


def test_flip_mirrors_about_half_of_the_images_left_to_right():
    x = np.asarray(images((400, 3, 4, 1)))
    out = np.asarray(augment.build(flip=True)(KEY, x))
    mirrored = (out == x[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (out == x).all((1, 2, 3))).all()
    assert 150 < mirrored.sum() < 250  # 5 sigma


ALL = {"flip": True, "shift": 1.5, "rotate": 20, "zoom": 0.2, "fill": -0.5}


@pytest.mark.parametrize("shape", [STATIC, VIDEO])
@pytest.mark.parametrize("options", [{"flip": True}, ALL])
def test_shape_dtype_and_determinism(shape, options):
    fn, x = augment.build(**options), images(shape)
    out = fn(KEY, x)
    assert out.shape == shape and out.dtype == x.dtype
    np.testing.assert_array_equal(out, fn(KEY, x))
    assert (out != fn(jax.random.key(1), x)).any()


def test_every_example_draws_its_own_and_sees_no_other():
    fn, x = augment.build(**ALL), np.array(images((8, 9, 8, 2)))
    out = np.asarray(fn(KEY, x))
    np.testing.assert_allclose(fn(KEY, x[:3]), out[:3], atol=1e-6)
    same = np.asarray(fn(KEY, np.broadcast_to(x[:1], x.shape)))
    x[3:] = 0
    np.testing.assert_allclose(fn(KEY, x)[:3], out[:3], atol=1e-6)
    assert len({image.tobytes() for image in same}) == 8


def test_all_frames_move_together():
    x = images(STATIC)
    video = jnp.stack([x, 2 * x, x], axis=1)
    fn = augment.build(flip=True, shift=1.5, rotate=20, zoom=0.2)
    out = np.asarray(fn(KEY, video))
    np.testing.assert_allclose(out[:, 0], fn(KEY, x), atol=1e-6)
    np.testing.assert_allclose(out[:, 1], 2 * out[:, 0], atol=1e-6)
    np.testing.assert_array_equal(out[:, 2], out[:, 0])


def test_amounts_reach_their_bounds_and_stay_within():
    # a dot in the middle shows where it went, by its centre of mass
    dot = jnp.zeros((500, 11, 11, 1)).at[:, 5, 5].set(1.0)
    out = np.asarray(augment.build(shift=3)(KEY, dot))[..., 0]
    rows = (out.sum(2) * np.arange(11)).sum(1) - 5
    columns = (out.sum(1) * np.arange(11)).sum(1) - 5
    for moved in (rows, columns):
        assert np.abs(moved).max() <= 3 + 1e-5
        assert moved.min() < -2.8 and moved.max() > 2.8 and abs(moved.mean()) < 0.4
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": -1}, "augment.shift: got -1, expected at least 0"),
        ({"rotate": -5}, "augment.rotate: got -5"),
        ({"zoom": 1.0}, "augment.zoom: got 1.0, expected below 1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        augment.build(**options)


def test_tokens_cannot_be_augmented():
    with pytest.raises(ValueError, match=r"got \(4, 33, 43\), expected \[B, H, W, C\]"):
        augment.build(flip=True)(KEY, jnp.zeros((4, 33, 43)))


# one of each kind; frames of events have no use for jitter, but could
NEW = {
    "crop": {"crop": 2, "fill": -0.5},
    "jitter": {"jitter": 0.4, "mean": 0.5, "std": 0.25},
    "erase": {"erase": 0.8},
    "roll": {"roll": 3},
    "cutout": {"cutout": 3},
    "drop": {"drop": 0.3},
}


@pytest.mark.parametrize("name", NEW)
def test_frames_share_all_draws_but_those_of_drop(name):
    fn = augment.build(**NEW[name])
    x = images((8, 9, 7, 3))
    video = jnp.stack([x, 0.5 * x, x], 1)
    out, one = np.asarray(fn(KEY, video)), np.asarray(fn(KEY, x))
    assert out.shape == video.shape and one.shape == x.shape
    assert out.dtype == one.dtype == x.dtype
    np.testing.assert_array_equal(fn(KEY, video), out)
    np.testing.assert_array_equal(fn(KEY, x.at[3:].set(0))[:3], one[:3])
    assert (np.asarray(fn(jax.random.key(1), x)) != one).any()
    changed = (one != x).any((1, 2, 3))
    assert changed.sum() >= 4
    if name == "drop":
        assert (out[:, 0] != out[:, 2]).any((1, 2, 3)).all()
    else:
        np.testing.assert_array_equal(out[:, 0], out[:, 2])
        np.testing.assert_allclose(out[:, 0], one, atol=1e-6)
    same = np.asarray(fn(KEY, jnp.broadcast_to(x[:1], x.shape)))
    assert len({image.tobytes() for image in same}) >= 5


def test_asking_for_more_leaves_the_other_draws_alone():
    x = images((6, 9, 8, 3))
    plain = np.asarray(augment.build(**ALL)(KEY, x))
    thinned = np.asarray(augment.build(**ALL, drop=0.5)(KEY, x))
    assert 0.4 < (thinned == 0).mean() < 0.6
    np.testing.assert_allclose(thinned[thinned != 0], plain[thinned != 0], atol=1e-6)
    rolled = augment.build(**ALL, roll=2, drop=0.5)(KEY, x)
    want = np.array(augment.build(roll=2)(KEY, plain))
    want[thinned == 0] = 0
    np.testing.assert_allclose(rolled, want, atol=1e-6)


def test_a_crop_is_a_part_of_the_padded_image():
    x = np.asarray(images((400, 5, 6, 2)))
    out = np.asarray(augment.build(crop=2, fill=(-1.0, 3.0))(KEY, x))
    padded = np.empty((400, 9, 10, 2), np.float32)
    padded[:] = (-1, 3)
    padded[:, 2:7, 2:8] = x
    places = [(i, j) for i in range(5) for j in range(5)]
    hits = np.stack(
        [(out == padded[:, i : i + 5, j : j + 6]).all((1, 2, 3)) for i, j in places]
    )
    assert (hits.sum(0) == 1).all()
    counts = hits.sum(1)  # 16 expected of each
    assert counts.min() >= 3 and counts.max() <= 36


def test_a_roll_is_a_roll_by_whole_pixels():
    x = np.asarray(images((400, 5, 6, 2)))
    out = np.asarray(augment.build(roll=2)(KEY, x))
    hits = np.stack(
        [
            (out == np.roll(x, (i, j), (1, 2))).all((1, 2, 3))
            for i in range(-2, 3)
            for j in range(-2, 3)
        ]
    )
    assert (hits.sum(0) == 1).all()
    assert hits.sum(1).min() >= 3 and hits.sum(1).max() <= 36


def rectangles(gone):
    """Sides and places of what is gone, [B, H, W]; fails unless it is a rectangle."""
    rows, columns = gone.any(2), gone.any(1)
    assert (gone == rows[:, :, None] & columns[:, None, :]).all()
    for line in (rows, columns):  # in one piece
        assert (np.diff(np.pad(line.astype(int), ((0, 0), (1, 1)))) == 1).sum(
            1
        ).max() == 1
    return rows.sum(1), columns.sum(1), rows.argmax(1), columns.argmax(1)


def test_cutout_clears_a_square_within_the_image():
    x = np.ones((600, 2, 7, 6, 2), np.float32)
    out = np.asarray(augment.build(cutout=3)(KEY, x))
    gone = (out == 0).all((1, 4))
    assert (gone == (out == 0).any((1, 4))).all()
    height, width, top, left = rectangles(gone)
    assert (height == 3).all() and (width == 3).all()
    assert np.bincount(top, minlength=5).min() > 80 and top.max() == 4
    assert np.bincount(left, minlength=4).min() > 105 and left.max() == 3


def test_erasing_clears_rectangles_of_the_documented_law():
    side, n = 40, 2000
    x = np.ones((n, side, side, 1), np.float32)
    out = np.asarray(augment.build(erase=1.0)(KEY, x))
    height, width, top, left = rectangles(out[..., 0] == 0)
    assert (height > 0).all()  # at 40 pixels one of ten tries always fits
    area, aspect = height * width / side**2, height / width
    assert abs(area.mean() - (0.02 + 1 / 3) / 2) < 0.01  # 5 sigma
    # sides are rounded by at most half a pixel
    exact = (height + 0.5) * (width + 0.5) / side**2
    assert exact.min() > 0.02 and exact.max() < 0.37
    assert area.min() < 0.025 and area.max() > 0.32
    assert abs(np.log(aspect).mean()) < 0.08
    assert ((height + 0.5) / (width - 0.5) > 0.3).all()
    assert aspect.min() < 0.35 and aspect.max() > 1 / 0.35
    for start, size in ((top, height), (left, width)):
        place = start / (side - size)  # uniform in [0, 1]
        assert place.min() == 0 and place.max() == 1 and abs(place.mean() - 0.5) < 0.04
    half = np.asarray(augment.build(erase=0.3)(KEY, x))
    assert abs((half == 0).any((1, 2, 3)).mean() - 0.3) < 0.052
    assert (out[out != 0] == 1).all()


def test_drop_keeps_values_with_its_probability():
    x = np.asarray(images((4, 5, 20, 20, 2)))
    out = np.asarray(augment.build(drop=0.25)(KEY, x))
    gone = out == 0
    np.testing.assert_array_equal(out[~gone], x[~gone])
    assert abs(gone.mean() - 0.25) < 0.018  # 5 sigma of 16,000
    assert abs(np.corrcoef(gone[:, 0].ravel(), gone[:, 1].ravel())[0, 1]) < 0.09


def photographs():
    folder = os.path.join(os.environ.get("A2OS2A_DATA", ""), "tfds")
    if not os.path.isdir(os.path.join(folder, "cifar10")):
        pytest.skip("CIFAR-10 needs A2OS2A_DATA with tfds/cifar10")
    tfds = pytest.importorskip("tensorflow_datasets")
    source = tfds.data_source("cifar10", split="test[:40]", data_dir=folder)
    return np.stack([source[i]["image"] for i in range(40)])


def noise():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("images", [noise, photographs])
def test_jitter_is_three_of_pillows_enhancements_in_random_order(images):
    x = images()
    mean, std = np.float32([0.5, 0.4, 0.3]), np.float32([0.2, 0.3, 0.4])
    fn = augment.build(jitter=0.6, mean=tuple(mean), std=tuple(std))
    out = np.asarray(fn(KEY, (np.float32(x) / 255 - mean) / std))
    out = 255 * (out * std + mean)
    np.testing.assert_allclose(out, np.round(out), atol=1e-2)
    enhancements = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]

    @jax.jit
    def drawn(i):
        key = augment._key(jax.random.fold_in(KEY, i), "jitter")
        order, how = jax.random.split(key)
        factors = jax.random.uniform(how, (3,), jnp.float32, 0.4, 1.6)
        return jax.random.permutation(order, 3), factors

    orders, all_factors = set(), []
    for i, pixels in enumerate(x):
        order, factors = drawn(i)
        image = Image.fromarray(pixels)
        for which in order:
            image = enhancements[which](image).enhance(float(factors[which]))
        assert np.abs(out[i] - np.asarray(image)).max() <= 1.01
        orders.add(tuple(map(int, order)))
        all_factors.append(factors)
    assert len(orders) == 6
    assert np.min(all_factors) < 0.45 and np.max(all_factors) > 1.55


def test_jitter_of_one_channel_leaves_the_means_saturation():
    # of constant grey images, contrast and saturation are what they are
    x = np.full((500, 4, 4, 1), 100 / 255, np.float32)
    out = 255 * np.asarray(augment.build(jitter=0.5)(KEY, x))
    assert (out == out[:, :1, :1]).all()
    assert 49.9 < out.min() < 52 and 148 < out.max() < 150.1
    assert abs(out.mean() - 99.5) < 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": -1}, "augment.crop: got -1, expected 0, 1, 2"),
        ({"crop": 1.5}, "augment.crop: got 1.5"),
        ({"roll": -1}, "augment.roll: got -1"),
        ({"cutout": 0.5}, "augment.cutout: got 0.5"),
        ({"jitter": 1.2}, "augment.jitter: got 1.2, expected 0 to 1"),
        ({"jitter": -0.1}, "augment.jitter: got -0.1"),
        ({"erase": 2}, "augment.erase: got 2, expected 0 to 1"),
        ({"drop": 1.0}, "augment.drop: got 1.0, expected 0 <= it < 1"),
        ({"randaugment": "rand", "ops": "x"}, "augment.ops: got 'x', expected 'timm'"),
        ({"ops": "x"}, "augment.ops: got 'x', expected 'timm'"),
        ({"resample": "x"}, "augment.resample: got 'x', expected 'bilinear' or"),
    ],
)
def test_bad_amounts_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        augment.build(**options)


def test_images_that_do_not_fit_are_refused_when_traced():
    with pytest.raises(ValueError, match="augment.cutout: got 9, expected at most 8"):
        augment.build(cutout=9)(KEY, jnp.zeros(STATIC))
    with pytest.raises(ValueError, match="augment.jitter: got .*expected 1 or 3 chann"):
        augment.build(jitter=0.1)(KEY, jnp.zeros(STATIC))
