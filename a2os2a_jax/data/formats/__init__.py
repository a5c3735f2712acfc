"""Recordings of event cameras: one module for a file format, one result for all.

    .aedat          AEDAT 2.0 of a DVS128 (CIFAR10-DVS), AEDAT 3.1 (DVS128 Gesture)
    .bin            N-MNIST, N-Caltech101
    .dat            Prophesee and Chronocam (N-CARS)
    .h5, .hdf5      HDF5, with h5py

Every reader is written from the published description that its module names.
"""

import importlib
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

READERS = {  # suffix -> module, imported when asked for
    ".aedat": "aedat",
    ".bin": "nmnist",
    ".dat": "prophesee",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
}
CUT = ("error", "keep")


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


def read(path: str | Path, *, cut: str = "error") -> Events:
    """The events of a recording, its format told by its suffix.

    Times that go back are put in order, events of one time staying as they were:
    packets of a file may overlap, and slicing by count wants one order.

    Args:
      path: of the file.
      cut: what a file does that ends in the middle of an event: "error", or "keep" the
        whole events in front of it, with a warning that says what was dropped.
    Raises:
      ValueError: names the file, what was got and what was expected.
      OSError: the file cannot be opened.
      ImportError: HDF5 without h5py.
    """
    path = Path(path)
    if cut not in CUT:
        raise ValueError(f"cut: got {cut!r}, expected error or keep")
    module = READERS.get(path.suffix.lower())
    if module is None:
        expected = ", ".join(READERS)
        raise ValueError(f"{path}: got the suffix {path.suffix!r}, expected {expected}")
    events = importlib.import_module(f"{__name__}.{module}").read(path, cut=cut)
    if np.all(events.t[1:] >= events.t[:-1]):
        return events
    order = np.argsort(events.t, kind="stable")
    return Events(*(column[order] for column in events))


def make(t, x, y, p) -> Events:
    """`Events` of arrays of any integer types."""
    kinds = (np.int64, np.int32, np.int32, np.uint8)
    columns = zip((t, x, y, p), kinds, strict=True)
    return Events(*(np.asarray(column).astype(kind) for column, kind in columns))


def whole(
    path: Path, data: bytes, start: int, size: int, cut: str, *, end: int | None = None
) -> memoryview:
    """data[start:end] less the beginning of a record of `size` bytes at its end.

    Raises:
      ValueError: there is such a rest, or `end` lies behind the data, and cut is
        "error".
    """
    have = len(data) if end is None else min(end, len(data))
    rest = (have - start) % size
    if rest or (end is not None and have < end):
        dropped(path, rest, have - rest, f"events of {size} bytes", cut)
    return memoryview(data)[start : have - rest]


def dropped(path: Path, count: int, at: int, expected: str, cut: str) -> None:
    """A file that is cut: ValueError, or a warning where cut is "keep"."""
    if cut == "error":
        raise ValueError(
            f"{path}: got {count} bytes at byte {at}, where it ends, expected "
            f"{expected}: the file is cut"
        )
    warnings.warn(
        f"{path}: is cut at byte {at}, dropped the last {count} bytes", stacklevel=4
    )
