"""The files of N-MNIST and N-Caltech101: nothing but events of 5 bytes.

    byte   0   1   2 (bit 7)              2 (bits 6-0), 3, 4
           x   y   polarity, 1 brighter   time in microseconds, most significant first

An event with y = 240, which no sensor of these sets has, is a marker: the clock of the
camera went over, and from it on 2^13 microseconds are added to every time. The page of
the data sets and their MATLAB reader do not know it; their Python reader does. Files
with such a marker are rare.

Sources: Orchard et al. 2015, Converting static image datasets to spiking neuromorphic
datasets using saccades; garrickorchard.com/datasets/n-mnist; G. Orchard's event-Python.
"""

from pathlib import Path

import numpy as np

from a2os2a_jax.data import formats

SIZE = 5  # bytes of an event
MARKER, STEP = 240, 2**13  # a row; microseconds


def read(path: Path) -> formats.Events:
    """The events of a file, in its order."""
    data = Path(path).read_bytes()
    raw = np.frombuffer(formats.whole(path, data, 0, SIZE), np.uint8)
    x, y, high, middle, low = raw.reshape(-1, SIZE).T.astype(np.int64)
    t = (high & 0x7F) << 16 | middle << 8 | low
    return unmarked(formats.make(t, x, y, high >> 7))


def unmarked(events: formats.Events) -> formats.Events:
    """Events without the markers, which moved the times of those after them."""
    marker = events.y == MARKER
    events = events._replace(t=events.t + STEP * np.cumsum(marker))
    return formats.Events(*(column[~marker] for column in events))
