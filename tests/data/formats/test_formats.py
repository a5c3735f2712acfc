import os
from pathlib import Path

import numpy as np
import pytest

from a2os2a_jax.data import formats


@pytest.fixture(scope="module")
def recording():
    """recording(name) -> a file of a real camera, else the test is skipped."""

    def find(name: str) -> Path:
        root = os.environ.get("A2OS2A_DATA")
        if root is None:
            pytest.skip(f"no {name}: A2OS2A_DATA, the folder of data sets, is unset")
        path = Path(root) / "events" / name
        if not path.is_file():
            pytest.skip(f"no {name} in {root}/events")
        return path

    return find


def test_a_recording_of_nmnist(recording):
    e = formats.read(recording("sample_nmnist.bin"))
    assert [len(column) for column in e] == [4325] * 4
    assert [column.dtype for column in e] == [np.int64, np.int32, np.int32, np.uint8]
    assert (e.t[0], e.x[0], e.y[0], e.p[0]) == (0x028E, 7, 15, 1)  # 07 0f 80 02 8e
    assert (np.diff(e.t) >= 0).all() and e.t[-1] == 311175  # 0.3 s, three saccades
    assert e.x.max() == e.y.max() == 33 and set(e.p) == {0, 1}
    # a digit that is taller than wide, in the middle, brightened as often as darkened
    assert 6 > e.y.std() > e.x.std() + 0.5 and 0.4 < e.p.mean() < 0.6
    assert abs(e.x.mean() - 16.5) < 2 and abs(e.y.mean() - 16.5) < 2


def test_a_recording_of_ncars(recording):
    e = formats.read(recording("sample_ncars.dat"))
    assert [len(column) for column in e] == [2009] * 4
    # 00000023 0008c043: x = 67, y = 35; fourth: 000010ca 1006c038 would be brighter
    assert (e.t[0], e.x[0], e.y[0], e.p[0]) == (0, 25, 8, 0)
    assert (e.t[1], e.x[1], e.y[1], e.p[1]) == (0x23, 67, 35, 0)
    assert (np.diff(e.t) >= 0).all() and e.t[-1] < 100_000  # all have 0.1 s
    assert e.x.max() == 77 and e.y.max() == 41


def test_times_that_go_back_are_put_in_order_and_no_others(tmp_path):
    path = tmp_path / "a.bin"
    # (t, x): equal times keep their order
    rows = [(5, 1), (3, 2), (3, 3), (9, 4), (5, 5)]
    path.write_bytes(b"".join(bytes([x, 0, 0x80, 0, t]) for t, x in rows))
    e = formats.read(path)
    assert e.t.tolist() == [3, 3, 5, 5, 9] and e.x.tolist() == [2, 3, 1, 5, 4]


def test_a_clock_of_32_bits_that_starts_again_goes_on():
    late = [2**32 - 9, 3, 2**32 - 1, 5]  # the third comes from before the start
    assert formats.unwrap(late).tolist() == [2**32 + n for n in (-9, 3, -1, 5)]
    twice = np.array([2 * 10**9, 4 * 10**9, 7, 2 * 10**9, 4 * 10**9, 9], np.uint32)
    first, second = [2 * 10**9, 4 * 10**9], [7, 2 * 10**9, 4 * 10**9]
    expected = [*first, *(2**32 + n for n in second), 2 * 2**32 + 9]
    assert formats.unwrap(twice).tolist() == expected
    # a pause in front, or a step back of no more than half, is none
    for t in ([0, 2**31 + 1, 2**31 + 2], [2**31, 0, 1], [7], []):
        assert formats.unwrap(t).tolist() == t


def test_suffixes(tmp_path):
    (tmp_path / "A.BIN").write_bytes(bytes(5))
    assert len(formats.read(str(tmp_path / "A.BIN")).t) == 1
    with pytest.raises(
        ValueError, match=r"a.raw: got the suffix '.raw', expected .aed"
    ):
        formats.read(tmp_path / "a.raw")
    with pytest.raises(FileNotFoundError, match="none.bin"):
        formats.read(tmp_path / "none.bin")


@pytest.mark.parametrize("name", ["a.bin", "a.dat", "b.dat", "a.aedat"])
def test_an_empty_recording_has_no_events(tmp_path, name):
    head = {"b.dat": b"% Version 2\n\x00\x08", "a.aedat": b"#!AER-DAT2.0\r\n"}
    (tmp_path / name).write_bytes(head.get(name, b""))
    e = formats.read(tmp_path / name)
    assert [len(column) for column in e] == [0] * 4 and e.t.dtype == np.int64
