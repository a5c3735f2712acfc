import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.data import formats, frames

SENSOR = (7, 9)


def recording(count=503, seed=0, sensor=SENSOR):
    rng = np.random.RandomState(seed)
    height, width = sensor
    t = np.sort(rng.randint(1000, 9000, count))
    x, y = rng.randint(0, width, count), rng.randint(0, height, count)
    return formats.make(t, x, y, rng.randint(0, 2, count))


def slow(events, timesteps, sensor, by):
    """One event after the other, as the docstring says."""
    out = np.zeros((timesteps, *sensor, 2), int)
    count, first, last = len(events.t), events.t.min(), events.t.max()
    for i, (t, x, y, p) in enumerate(zip(*events, strict=True)):
        if by == "count":
            k = min(i // max(count // timesteps, 1), timesteps - 1)
        else:
            k = int(t - first) * timesteps // int(last - first + 1)
        out[k, y, x, p] += 1
    return out


@pytest.mark.parametrize("by", frames.SLICES)
@pytest.mark.parametrize("timesteps", [1, 4, 10])
@pytest.mark.parametrize("count", [1, 3, 40, 503])
def test_counts_equal_those_of_a_loop(by, timesteps, count):
    e = recording(count)
    made = frames.to_frames(e, timesteps=timesteps, sensor=SENSOR, by=by)
    assert made.dtype == np.uint16 and made.shape == (timesteps, *SENSOR, 2)
    np.testing.assert_array_equal(made, slow(e, timesteps, SENSOR, by))
    assert made.sum() == count


def test_by_hand():
    e = formats.make(
        [0, 10, 60, 99, 100], [1, 1, 0, 2, 2], [0, 0, 1, 1, 1], [1, 1, 0, 1, 1]
    )
    made = frames.to_frames(e, timesteps=2, sensor=(2, 3), by="time")
    assert made[0, 0, 1].tolist() == [0, 2] and made[0].sum() == 2
    assert made[1, 1, 0].tolist() == [1, 0] and made[1, 1, 2].tolist() == [0, 2]
    made = frames.to_frames(e, timesteps=2, sensor=(2, 3))
    assert made.sum((1, 2, 3)).tolist() == [2, 3]  # the last takes the rest


@pytest.mark.parametrize("by", frames.SLICES)
def test_the_order_within_a_slice_does_not_matter(by):
    e = recording(500)
    made = frames.to_frames(e, timesteps=5, sensor=SENSOR, by=by)
    rng = np.random.RandomState(1)
    parts = np.arange(500).reshape(5, 100) if by == "count" else [np.arange(500)]
    order = np.concatenate([rng.permutation(part) for part in parts])
    mixed = formats.Events(*(column[order] for column in e))
    again = frames.to_frames(mixed, timesteps=5, sensor=SENSOR, by=by)
    np.testing.assert_array_equal(again, made)
    np.testing.assert_raises(
        AssertionError, np.testing.assert_array_equal, *(made[i] for i in (0, 1))
    )


def test_slices_add_up():
    e = recording(480)
    for by in frames.SLICES:
        fine = frames.to_frames(e, timesteps=8, sensor=SENSOR, by=by)
        whole = frames.to_frames(e, timesteps=1, sensor=SENSOR, by=by)
        np.testing.assert_array_equal(fine.sum(0, keepdims=True), whole)
    coarse = frames.to_frames(e, timesteps=4, sensor=SENSOR)
    fine = frames.to_frames(e, timesteps=8, sensor=SENSOR)
    np.testing.assert_array_equal(fine.reshape(4, 2, *fine.shape[1:]).sum(1), coarse)


@pytest.mark.parametrize("by", frames.SLICES)
def test_a_later_or_slower_clock_changes_nothing(by):
    e = recording()
    made = frames.to_frames(e, timesteps=6, sensor=SENSOR, by=by)
    later = frames.to_frames(
        e._replace(t=e.t + 2**40), timesteps=6, sensor=SENSOR, by=by
    )
    np.testing.assert_array_equal(later, made)


def test_swapping_moves_what_it_must():
    e = recording(sensor=(9, 9))
    made = frames.to_frames(e, timesteps=3, sensor=(9, 9))
    turned = frames.to_frames(e._replace(x=e.y, y=e.x), timesteps=3, sensor=(9, 9))
    np.testing.assert_array_equal(turned, made.swapaxes(1, 2))
    dark = frames.to_frames(e._replace(p=1 - e.p), timesteps=3, sensor=(9, 9))
    np.testing.assert_array_equal(dark, made[..., ::-1])


def test_events_outside_the_sensor():
    e = recording(100)
    x = e.x.copy()
    x[[3, 7]] = 9, -1
    with pytest.raises(
        ValueError, match="got 2 of 100 events outside .* column 9, expected 7 r"
    ):
        frames.to_frames(e._replace(x=x), timesteps=4, sensor=SENSOR)


def test_a_few_events_outside_the_sensor_are_left_out_and_counted():
    whole = recording(100)
    assert frames.inside(whole, SENSOR) == (whole, 0)
    for axis in ("x", "y"):
        column = getattr(whole, axis).copy()
        column[[3, 7, 50, 51, 99]] = 9, -1, 2**31 - 1, -(2**31), 9
        left, count = frames.inside(whole._replace(**{axis: column}), SENSOR)
        kept = np.setdiff1d(np.arange(100), [3, 7, 50, 51, 99])
        assert count == 5
        for have, want in zip(left, whole, strict=True):
            np.testing.assert_array_equal(have, want[kept])
        column[20] = 9
        with pytest.raises(ValueError, match="got 6 of 100 events outside the sensor"):
            frames.inside(whole._replace(**{axis: column}), SENSOR)


def test_a_single_event_outside_is_left_out_of_any_recording():
    e = formats.make([1, 2], [1, 99], [1, 1], [0, 1])
    left, count = frames.inside(e, SENSOR)
    assert (left.t.tolist(), count) == ([1], 1)
    with pytest.raises(ValueError, match="got 2 of 2 events outside"):
        frames.inside(e._replace(x=e.x + 50), SENSOR)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by": "number"}, "data.slice_by: got 'number', expected count or time"),
        ({"timesteps": 0}, "got 0 timesteps"),
        ({"events": recording(0)}, "got no events, expected at least 1"),
        (
            {"events": recording(3)._replace(p=np.array([0, 1, 2]))},
            "got polarity 0 to 2",
        ),
        ({"events": formats.make(*np.zeros((4, 65_536)))}, "got 65536 events in one"),
    ],
)
def test_what_is_refused(change, message):
    arguments = {"events": recording(9), "timesteps": 1, "sensor": SENSOR} | change
    with pytest.raises(ValueError, match=message):
        frames.to_frames(arguments.pop("events"), **arguments)


def test_all_at_one_time():
    e = formats.make([5, 5, 5], [0, 1, 2], [0, 0, 0], [1, 1, 1])
    made = frames.to_frames(e, timesteps=4, sensor=SENSOR, by="time")
    assert made.sum((1, 2, 3)).tolist() == [3, 0, 0, 0]


def test_padding_keeps_counts_in_the_middle():
    x = np.arange(2 * 3 * 5 * 2, dtype=np.int32).reshape(2, 3, 5, 2)
    out = np.asarray(frames.fit(x, 8))
    assert out.shape == (2, 8, 8, 2) and out.dtype == x.dtype
    np.testing.assert_array_equal(out[:, 2:5, 1:6], x)
    assert out.sum() == x.sum()
    np.testing.assert_array_equal(frames.fit(x[:, :, :3], 3), x[:, :, :3])


def test_cropping_keeps_the_middle():
    x = np.arange(6 * 10).reshape(6, 10, 1)
    np.testing.assert_array_equal(frames.fit(x, 4, "crop"), x[1:5, 3:7])
    out = np.asarray(frames.fit(x, 8, "crop"))
    np.testing.assert_array_equal(out[1:7], x[:, 1:9])
    assert not out[0].any() and not out[7].any()


def test_resizing_keeps_the_mean_and_the_proportions():
    x = jnp.full((3, 8, 8, 2), 5.0)
    np.testing.assert_allclose(frames.fit(x, 4, "resize"), 5.0, rtol=1e-6)
    np.testing.assert_array_equal(frames.fit(x, 8, "resize"), x)
    wide = np.zeros((4, 8, 1), np.uint8)
    wide[:, 4:] = 4
    out = np.asarray(frames.fit(wide, 4, "resize"))  # 2 rows of zeros above and below
    assert out.dtype == np.float32 and out.shape == (4, 4, 1)
    np.testing.assert_allclose(out.mean(), 1.0, rtol=0.1)
    assert out[1, 0] < 0.1 and out[1, 3] > 2 and out[0, 3] < 1


@pytest.mark.parametrize(
    ("size", "how", "message"),
    [
        (8, "stretch", "data.fit: got 'stretch', expected pad, resize, crop"),
        (8, "pad", "data.size: got 8, expected at least 9 .*data.fit=resize or crop"),
        (0, "crop", "data.size: got 0, expected at least 1"),
    ],
)
def test_fits_that_are_refused(size, how, message):
    with pytest.raises(ValueError, match=message):
        frames.fit(np.zeros((*SENSOR, 2)), size, how)
