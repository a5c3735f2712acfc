"""AEDAT 2.0 and 3.1, the files of jAER and cAER.

2.0: lines that start with "#", then events of 8 bytes, big-endian, uint32 address and
uint32 time in microseconds. What an address means depends on the chip; read is that of
the DVS128, 128x128 pixels:

    bit   31        15         14-8    7-1     0
          special   external   y       x       polarity, 1 is darker

Special and external events (of the pin IN, for one) are no change of brightness: they
are left out, and a warning counts them; their other bits do not matter. Bits 16-30 are
0, so a stray event that has one is given a row far outside. jAER mirrors x, and its y
counts from the bottom: here column = 127 - x and row = 127 - y. The published
page says that polarity 1 is brighter; jAER's code and every reader of CIFAR10-DVS take
it as darker, and so does this one.

3.1: lines up to "#!END-HEADER", then packets, little-endian: a header of 28 bytes

    int16 type, source; int32 size, time offset, overflow, capacity, number, valid

and capacity * size bytes, of which the first number * size are events. Polarity events
have type 1 and 8 bytes, a word (bit 0 valid, 1 polarity, 2-16 y, 17-31 x, from the
upper left, 1 is brighter) and the lower 31 bits of the time in microseconds, whose
others are `overflow`. Invalid events are dropped, other packets skipped.

Sources: docs.inivation.com, File formats, AEDAT 1.0, 2.0, 3.0 and Common version
header; libcaer's headers events/common.h and events/polarity.h, which state 3.1; jAER's
chip class DVS128.
"""

import re
import struct
import warnings
from pathlib import Path

import numpy as np

from a2os2a_jax.data import formats

SIDE = 128  # pixels, of a DVS128
PACKET = struct.Struct("<hhiiiiii")
POLARITY = 1  # type of a packet
NO_PIXEL = 0x8000_8000  # either bit says that an event of 2.0 is none of a pixel


def read(path: Path) -> formats.Events:
    """The events of a file of either version, in its order."""
    data = Path(path).read_bytes()
    line = data[:80].partition(b"\n")[0].rstrip(b"\r")
    if line == b"#!AER-DAT2.0":
        return _read_2(path, data)
    if line == b"#!AER-DAT3.1":
        return _read_3(path, data)
    raise ValueError(
        f"{path}: got the first line {line[:40]!r}, expected #!AER-DAT2.0 or "
        "#!AER-DAT3.1"
    )


def _read_2(path: Path, data: bytes) -> formats.Events:
    start = 0
    # The first byte of an event is 0, or from 0x80 on if it is special, never a "#".
    while data[start : start + 1] == b"#":
        start = data.find(b"\n", start) + 1 or len(data)
    words = np.frombuffer(formats.whole(path, data, start, 8), ">u4")
    address, t = words.astype(np.int64).reshape(-1, 2).T
    pixel = address & NO_PIXEL == 0
    outside = pixel & (address >> 16 != 0)
    if formats.of_another_sensor(outside):
        first = int(np.argmax(outside))
        raise ValueError(
            f"{path}: got address {address[first]:#x} at byte {start + 8 * first}, "
            "expected the 16 bits of a DVS128"
        )
    if left_out := len(pixel) - np.count_nonzero(pixel):
        warnings.warn(
            f"{path}: left out {left_out} of {len(pixel)} events, special or external",
            stacklevel=4,
        )
    address, t = address[pixel], formats.unwrap(t[pixel])
    x, y, p = address >> 1 & 0x7F, address >> 8, address & 1
    return formats.make(t, SIDE - 1 - x, SIDE - 1 - y, 1 - p)


def _read_3(path: Path, data: bytes) -> formats.Events:
    header = re.search(rb"#!END-HEADER\r?\n", data)
    if header is None:
        raise ValueError(f"{path}: got no line #!END-HEADER, which ends the header")
    coding = re.search(rb"^#Format: *([^\r\n]*)", data[: header.start()], re.M)
    if coding and coding[1].strip() != b"RAW":
        raise ValueError(f"{path}: got the format {coding[1].decode()}, expected RAW")
    at, parts = header.end(), [np.empty((0, 2), np.int64)]
    while at < len(data):
        if len(data) - at < PACKET.size:
            expected = f"a packet header of {PACKET.size}"
            raise formats.cut(path, len(data) - at, at, expected)
        kind, _, size, offset, overflow, capacity, number, _ = PACKET.unpack_from(
            data, at
        )
        if size <= 0 or overflow < 0 or not 0 <= number <= capacity:
            raise ValueError(
                f"{path}: got a packet of {number} events of {size} bytes, capacity "
                f"{capacity}, overflow {overflow}, at byte {at}, expected a header"
            )
        if kind == POLARITY and (size, offset) != (8, 4):
            raise ValueError(
                f"{path}: got polarity events of {size} bytes with their time at "
                f"{offset}, at byte {at}, expected 8 and 4"
            )
        start = at + PACKET.size
        at = start + capacity * size
        body = formats.whole(path, data, start, size, end=at)
        if kind == POLARITY:
            words = np.frombuffer(body, "<u4").reshape(-1, 2)[:number].astype(np.int64)
            words[:, 1] |= overflow << 31
            parts.append(words)
    word, t = np.concatenate(parts).T
    valid = word & 1 == 1
    word, t = word[valid], t[valid]
    return formats.make(t, word >> 17, word >> 2 & 0x7FFF, word >> 1 & 1)
