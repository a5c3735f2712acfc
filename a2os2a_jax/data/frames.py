"""From events to frames, counted on the host, and frames to a size, on the device."""

import jax
import jax.numpy as jnp
import numpy as np

from a2os2a_jax.data.formats import Events, of_another_sensor

SLICES = ("count", "time")
FITS = ("pad", "resize", "crop")


def to_frames(
    events: Events,
    *,
    timesteps: int,
    sensor: tuple[int, int],
    by: str = "count",
) -> np.ndarray:
    """Events counted in `timesteps` slices, by pixel and polarity.

        frames[k, y, x, p] = number of events (t, x, y, p) in slice k

    Slices by "count" have floor(E / timesteps) events each, the last one takes the rest
    too (as in SpikingJelly); of fewer events than slices the first slices get one each.
    Slices by "time" are equal parts of the time from the first event to the last, both
    included; if no time passes, all events are in the first.

    Args:
      events: of one recording; by "count", in the order of time.
      timesteps: T, number of slices.
      sensor: (H, W), pixels.
      by: "count", "time".
    Returns:
      uint16 [T, H, W, 2]; channel 0 counts what became darker, 1 what became brighter.
    Raises:
      ValueError: no events, events outside the sensor, more than 65,535 in one pixel of
        a slice, or arguments that do not fit.
    """
    height, width = sensor
    if by not in SLICES:
        raise ValueError(f"data.slice_by: got {by!r}, expected count or time")
    if min(timesteps, height, width) < 1:
        raise ValueError(
            f"to_frames: got {timesteps} timesteps and a sensor of {height}x{width}, "
            "expected at least 1"
        )
    t, x, y, p = (np.asarray(column, np.int64) for column in events)
    if (outside := _outside(events, sensor)).any():
        raise _astray(events, outside, sensor)
    if not len(t):
        raise ValueError("to_frames: got no events, expected at least 1")
    if p.min() < 0 or p.max() > 1:
        raise ValueError(
            f"to_frames: got polarity {p.min()} to {p.max()}, expected 0, 1"
        )
    if by == "count":
        part = np.arange(len(t)) // max(len(t) // timesteps, 1)
        part = np.minimum(part, timesteps - 1)
    else:
        since = t - t.min()
        part = since * timesteps // (since.max() + 1)
    place = ((part * height + y) * width + x) * 2 + p
    counts = np.bincount(place, minlength=timesteps * height * width * 2)
    if counts.max() > np.iinfo(np.uint16).max:
        raise ValueError(
            f"to_frames: got {counts.max()} events in one pixel of a slice"
        )
    return counts.astype(np.uint16).reshape(timesteps, height, width, 2)


def inside(events: Events, sensor: tuple[int, int]) -> tuple[Events, int]:
    """(events of the sensor, number of those outside, which are left out).

    Raises:
      ValueError: more are outside than go astray in a recording of this sensor
        (`formats.of_another_sensor`).
    """
    outside = _outside(events, sensor)
    if of_another_sensor(outside):
        raise _astray(events, outside, sensor)
    count = int(np.count_nonzero(outside))
    return Events(*(column[~outside] for column in events)) if count else events, count


def _outside(events: Events, sensor: tuple[int, int]) -> np.ndarray:
    height, width = sensor
    x, y = np.asarray(events.x), np.asarray(events.y)
    return (x < 0) | (x >= width) | (y < 0) | (y >= height)


def _astray(events: Events, outside: np.ndarray, sensor: tuple[int, int]) -> ValueError:
    first = int(np.argmax(outside))
    height, width = sensor
    return ValueError(
        f"got {np.count_nonzero(outside):,} of {len(outside):,} events outside the "
        f"sensor, the first at row {events.y[first]}, column {events.x[first]}, "
        f"expected {height} rows, {width} columns"
    )


def check_fit(sensor: tuple[int, int], size: int, how: str) -> None:
    """ValueError unless frames of the sensor can be made [size, size] in this way."""
    if how not in FITS:
        raise ValueError(f"data.fit: got {how!r}, expected {', '.join(FITS)}")
    if size < 1:
        raise ValueError(f"data.size: got {size}, expected at least 1")
    if how == "pad" and size < max(sensor):
        height, width = sensor
        raise ValueError(
            f"data.size: got {size}, expected at least {max(sensor)} to pad frames of "
            f"{height}x{width}; data.fit=resize or crop makes them smaller"
        )


def fit(frames: jax.Array, size: int, how: str = "pad") -> jax.Array:
    """[..., H, W, C] -> [..., size, size, C]; what is of that size stays as it is.

    "pad" puts zeros around, as many on either side (one more below and right, if odd):
    counts stay counts. "crop" keeps the middle, and pads what is missing. "resize" pads
    to a square, so that proportions stay, then interpolates linearly; where it makes
    smaller, every value is a mean over the pixels it stands for, weighted by a triangle
    (no sum of counts: values stay in the range they had).

    Raises:
      ValueError: as in `check_fit`.
    """
    frames = jnp.asarray(frames)
    check_fit(frames.shape[-3:-1], size, how)
    side = max(frames.shape[-3:-1]) if how == "resize" else size
    frames = _centred(_centred(frames, side, -3), side, -2)
    if how != "resize" or side == size:
        return frames
    shape = (*frames.shape[:-3], size, size, frames.shape[-1])
    frames = frames.astype(jnp.promote_types(frames.dtype, jnp.float32))
    return jax.image.resize(frames, shape, "bilinear")


def _centred(frames: jax.Array, size: int, axis: int) -> jax.Array:
    """Cut or padded to `size` along an axis, around its middle."""
    extra = size - frames.shape[axis]
    if extra <= 0:
        start = -extra // 2
        return jax.lax.slice_in_dim(frames, start, start + size, axis=axis)
    around = [(0, 0)] * frames.ndim
    around[axis] = (extra // 2, extra - extra // 2)
    return jnp.pad(frames, around)
