"""Prophesee's and Chronocam's .dat files of decoded events (N-CARS, Gen1, ...).

Lines that start with "% ", then a byte for the type of the events and one for their
size, 8, then events, little-endian: uint32 time in microseconds and a uint32 word,

    version 2          bits 0-13 x    14-27 y    28 polarity, 1 brighter
    versions 0 and 1   bits 0-8 x     9-16 y     17 polarity

A header without a line "% Version N" means version 0. A file without any header, older
still, starts with the first event and is version 0 as well.

Sources: docs.prophesee.ai, DAT File Format; the reader load_atis_data.m that came with
N-CARS for versions below 2.
"""

import re
from pathlib import Path

import numpy as np

from a2os2a_jax.data import formats

SIZE = 8  # bytes of an event
TYPES = (0, 12)  # generic 2D events, and contrast detection


def read(path: Path) -> formats.Events:
    """The events of a file, in its order."""
    data = Path(path).read_bytes()
    start = 0
    while data[start : start + 2] == b"% ":
        start = data.find(b"\n", start) + 1 or len(data)
    version = re.search(rb"^% Version (\d+)", data[:start], re.M)
    version = int(version[1]) if version else 0
    if version > 2:
        raise ValueError(f"{path}: got version {version}, expected at most 2")
    if start:
        if len(data) < start + 2:
            count = len(data) - start
            raise ValueError(
                f"{path}: got {count} bytes at byte {start}, expected the type and the "
                "size of the events"
            )
        kind, size = data[start : start + 2]
        if kind not in TYPES or size != SIZE:
            raise ValueError(
                f"{path}: got events of type {kind} and {size} bytes, expected type "
                f"{TYPES[0]} or {TYPES[1]} and {SIZE} bytes"
            )
        start += 2
    words = np.frombuffer(formats.whole(path, data, start, SIZE), "<u4")
    t, word = words.astype(np.int64).reshape(-1, 2).T
    t = formats.unwrap(t)
    if version < 2:
        return formats.make(t, word & 0x1FF, word >> 9 & 0xFF, word >> 17 & 1)
    return formats.make(t, word & 0x3FFF, word >> 14 & 0x3FFF, word >> 28 & 1)
