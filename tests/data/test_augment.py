import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.data import augment

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
