"""Recordings of event cameras: one module for a file format, one result for all.

    .aedat          AEDAT 2.0 of a DVS128 (CIFAR10-DVS), AEDAT 3.1 (DVS128 Gesture)
    .bin            N-MNIST, N-Caltech101
    .dat            Prophesee and Chronocam (N-CARS)
    .h5, .hdf5      HDF5, with h5py
    .npz            NumPy archives (SpikingJelly)

Capitals in a suffix do not matter.
Every reader is written from the published description that its module names.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

READERS = {  # suffix -> module, imported when asked for
    ".aedat": "aedat",
    ".bin": "nmnist",
    ".dat": "prophesee",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".npz": "npz",
}
FIELDS = ("t", "x", "y", "p")
STRAY = 0.05  # of the events may lie outside the sensor, and one always may


class Events(NamedTuple):
    """Changes of brightness, one entry each.

    t: int64 [E], microseconds, of any origin; `read` gives them never decreasing.
    x: int32 [E], column, from 0 at the left.
    y: int32 [E], row, from 0 at the top.
    p: uint8 [E], 1 brighter, 0 darker.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray


def read(
    path: str | Path, mend: Callable[[Events], Events] = lambda events: events
) -> Events:
    """The events of a recording, its format told by its suffix.

    Times that go back are put in order, events of one time staying as they were:
    packets of a file may overlap, and slicing by count wants one order.

    Args:
      mend: is given the events in the order of the file.
    Raises:
      ValueError: the file is cut, or no such recording; names it, what was got and what
        was expected.
      OSError: the file cannot be reached, which says nothing about what is in it.
      ImportError: HDF5 without h5py.
    """
    path = Path(path)
    module = READERS.get(path.suffix.lower())
    if module is None:
        expected = ", ".join(READERS)
        raise ValueError(f"{path}: got the suffix {path.suffix!r}, expected {expected}")
    events = mend(importlib.import_module(f"{__name__}.{module}").read(path))
    if np.all(events.t[1:] >= events.t[:-1]):
        return events
    order = np.argsort(events.t, kind="stable")
    return Events(*(column[order] for column in events))


def make(t, x, y, p) -> Events:
    """`Events` of arrays of any integer types."""
    kinds = (np.int64, np.int32, np.int32, np.uint8)
    columns = zip((t, x, y, p), kinds, strict=True)
    return Events(*(np.asarray(column).astype(kind) for column, kind in columns))


def checked(path: Path, columns: dict[str, np.ndarray]) -> Events:
    """`Events` of arrays t, x, y, p that a file holds under these names, in its order.

    Times of 32 bits are `unwrap`ped. In p, what is above 0 is brighter.
    Raises:
      ValueError: arrays of several lengths or none, or what are not whole numbers.
    """
    t, x, y, p = columns.values()
    if len({column.shape for column in (t, x, y, p)}) != 1 or t.ndim != 1:
        shapes = ", ".join(str(column.shape) for column in (t, x, y, p))
        raise ValueError(f"{path}: got t, x, y, p of shapes {shapes}, expected one [E]")
    for name, column in columns.items():
        if column.dtype.kind not in ("biu" if column is p else "iu"):
            raise ValueError(
                f"{path}: got {name} of type {column.dtype}, expected integers"
            )
    # what is far outside any sensor stays outside in 32 bits
    x, y = (np.clip(column.astype(np.int64), -1, 2**31 - 1) for column in (x, y))
    return make(unwrap(t) if t.itemsize == 4 else t, x, y, p > 0)


def of_another_sensor(outside: np.ndarray) -> bool:
    """True if more events are outside the sensor, bool [E], than may go astray."""
    return np.count_nonzero(outside) > max(1, STRAY * len(outside))


def unwrap(t: np.ndarray) -> np.ndarray:
    """Times of a clock of 32 bits, in the order of the file, as int64 that go on.

    Every 2^32 microseconds, 71.6 minutes, such a clock starts again. A step back by
    more than half of that is taken for it; events that come late, from before the
    start, are told by a step forward of as much.
    """
    t = np.asarray(t).astype(np.int64)
    steps = np.diff(t)
    change, turn = np.zeros(len(t), np.int64), 0
    for i in np.flatnonzero(np.abs(steps) > 2**31):
        # never below 0: a first step forward is a pause, not what came late
        after = max(0, turn + (1 if steps[i] < 0 else -1))
        change[i + 1], turn = after - turn, after
    return t + np.cumsum(change) * 2**32


def whole(
    path: Path, data: bytes, start: int, size: int, *, end: int | None = None
) -> memoryview:
    """data[start:end], records of `size` bytes.

    Raises:
      ValueError: the last record is cut, or `end` lies behind the data.
    """
    have = len(data) if end is None else min(end, len(data))
    rest = (have - start) % size
    if rest or (end is not None and have < end):
        raise cut(path, rest, have - rest, f"events of {size} bytes")
    return memoryview(data)[start:have]


def cut(path: Path, count: int, at: int, expected: str) -> ValueError:
    """What to raise for a file that ends too early."""
    return ValueError(
        f"{path}: got {count} bytes at byte {at}, where it ends, expected {expected}: "
        "the file is cut"
    )
