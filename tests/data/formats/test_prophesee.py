import struct

import numpy as np
import pytest

from a2os2a_jax.data import formats

HEAD = b"% Data file containing CD events\n% Version 2\n% Width 640\n% Height 480\n"
LAYOUT = {2: (14, 28), 1: (9, 17), 0: (9, 17)}  # bits: y, p


def write(path, t, x, y, p, *, version=2, head=HEAD, sizes=b"\x0c\x08"):
    y_bit, p_bit = LAYOUT[version]
    rows = zip(t, x, y, p, strict=True)
    body = b"".join(
        struct.pack("<II", t, p << p_bit | y << y_bit | x) for t, x, y, p in rows
    )
    path.write_bytes(head + (sizes if head else b"") + body)
    return path


def test_by_hand(tmp_path):
    body = bytes.fromhex("01020304 05400010")  # t 0x04030201, word 0x10004005
    (tmp_path / "a.dat").write_bytes(HEAD + b"\x00\x08" + body)
    e = formats.read(tmp_path / "a.dat")
    assert [column.tolist() for column in e] == [[0x04030201], [5], [1], [1]]


@pytest.mark.parametrize("version", LAYOUT)
def test_what_is_written_is_read(tmp_path, version):
    rng = np.random.RandomState(version)
    y_bit, p_bit = LAYOUT[version]
    t = np.sort(rng.randint(0, 2**32, 300)).tolist()
    x = rng.randint(0, 2**y_bit, 300).tolist()
    y = rng.randint(0, 2 ** (p_bit - y_bit), 300).tolist()
    p = rng.randint(0, 2, 300).tolist()
    heads = {2: [HEAD], 1: [HEAD.replace(b"Version 2", b"Version 1")]}
    # version 0 has a header without a version, or none
    for head in heads.get(version, [b"% Date 2014-01-01\n", b""]):
        path = write(tmp_path / "a.dat", t, x, y, p, version=version, head=head)
        e = formats.read(path)
        assert [column.tolist() for column in e] == [t, x, y, p]


def test_bits_above_the_polarity_do_not_matter(tmp_path):
    path = write(tmp_path / "a.dat", [1, 2], [3, 4], [5, 6], [0b1110, 0b0011])
    assert formats.read(path).p.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (b"\x0e\x08", "got events of type 14 and 8 bytes"),  # triggers
        (b"\x00\x10", "got events of type 0 and 16 bytes"),
        (b"\x00", "got 1 bytes at byte 70, expected the type and the size"),
    ],
)
def test_other_events_are_refused(tmp_path, sizes, message):
    path = write(tmp_path / "a.dat", [], [], [], [], sizes=sizes)
    with pytest.raises(ValueError, match=f"a.dat: {message}"):
        formats.read(path)


def test_later_versions_are_refused(tmp_path):
    head = HEAD.replace(b"Version 2", b"Version 3")
    with pytest.raises(ValueError, match="a.dat: got version 3, expected at most 2"):
        formats.read(write(tmp_path / "a.dat", [1], [2], [3], [1], head=head))


def test_cut_files(tmp_path):
    path = write(tmp_path / "a.dat", [1, 2, 3], [1] * 3, [2] * 3, [0, 1, 0])
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    with pytest.raises(
        ValueError, match=f"a.dat: got 3 bytes at byte {len(data) - 8},"
    ):
        formats.read(path)


def test_a_clock_that_starts_again(tmp_path):
    t = [2**32 - 2, 2**32 - 1, 0, 1, 5]
    e = formats.read(write(tmp_path / "a.dat", t, range(5), [2] * 5, [0] * 5))
    assert e.t.tolist() == [2**32 + n for n in (-2, -1, 0, 1, 5)]
    assert e.x.tolist() == [0, 1, 2, 3, 4]
