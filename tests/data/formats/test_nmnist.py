import numpy as np
import pytest

from a2os2a_jax.data import formats


def write(path, t, x, y, p):
    """The published layout: x, y, then a bit of polarity and 23 bits of time."""
    rows = zip(t, x, y, p, strict=True)
    parts = [bytes([x, y]) + (p << 23 | t).to_bytes(3, "big") for t, x, y, p in rows]
    path.write_bytes(b"".join(parts))
    return path


def test_by_hand(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes.fromhex("0502 0102030205 ffffff"))
    e = formats.read(tmp_path / "a.bin")
    assert e.t.tolist() == [0x010203, 0x7FFFFF]
    assert (e.x.tolist(), e.y.tolist(), e.p.tolist()) == ([5, 2], [2, 5], [0, 1])


def test_what_is_written_is_read(tmp_path):
    rng = np.random.RandomState(0)
    t = np.sort(rng.randint(0, 2**23, 500)).tolist()
    x, y = rng.randint(0, 240, (2, 500)).tolist()
    p = rng.randint(0, 2, 500).tolist()
    e = formats.read(write(tmp_path / "a.bin", t, x, y, p))
    assert [column.tolist() for column in e] == [t, x, y, p]


def test_a_marker_adds_to_all_times_from_it_on(tmp_path):
    t, y = [8000, 8190, 0, 5, 0, 7], [1, 2, 240, 3, 240, 4]
    e = formats.read(write(tmp_path / "a.bin", t, [9] * 6, y, [1] * 6))
    assert e.t.tolist() == [8000, 8190, 8192 + 5, 2 * 8192 + 7]
    assert e.y.tolist() == [1, 2, 3, 4]


def test_cut_files(tmp_path):
    path = write(tmp_path / "a.bin", [1, 2, 3], [1] * 3, [2] * 3, [0, 1, 0])
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="a.bin: got 3 bytes at byte 10, .*of 5 bytes"):
        formats.read(path)
