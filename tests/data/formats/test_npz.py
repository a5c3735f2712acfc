import io

import numpy as np
import pytest

from a2os2a_jax.data import formats

COLUMNS = {
    "t": np.array([10, 20, 30], np.uint32),
    "x": np.array([1, 2, 3], ">u4"),
    "y": np.array([4, 5, 6], np.int64),
    "p": np.array([0, 1, 1]),
}


def write(path, columns=COLUMNS, save=np.savez):
    with open(path, "wb") as file:
        save(file, **columns)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("p", [[0, 1, 1], [-1, 1, 1], [False, True, True]])
@pytest.mark.parametrize("name", ["a.npz", "a.NPZ"])
def test_what_is_written_is_read(tmp_path, name, p, save):
    columns = dict(COLUMNS, p=np.array(p), label=np.array("beside"))
    e = formats.read(write(tmp_path / name, columns, save))
    assert e.t.tolist() == [10, 20, 30] and e.p.tolist() == [0, 1, 1]
    assert e.x.tolist() == [1, 2, 3] and e.y.tolist() == [4, 5, 6]
    assert [column.dtype for column in e] == [np.int64, np.int32, np.int32, np.uint8]


def test_a_clock_of_32_bits_may_start_again(tmp_path):
    t = np.array([2**32 - 2, 2**32 - 1, 1])
    e = formats.read(write(tmp_path / "a.npz", dict(COLUMNS, t=t.astype(np.uint32))))
    assert e.t.tolist() == [2**32 - 2, 2**32 - 1, 2**32 + 1]
    e = formats.read(write(tmp_path / "a.npz", dict(COLUMNS, t=t)))
    assert e.t.tolist() == [1, 2**32 - 2, 2**32 - 1]


def test_what_is_far_outside_stays_outside(tmp_path):
    x = np.array([2**32 + 5, -1, 2**31])
    e = formats.read(write(tmp_path / "a.npz", dict(COLUMNS, x=x)))
    assert e.x.tolist() == [2**31 - 1, -1, 2**31 - 1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"frames": np.zeros(3)}, "got the arrays frames, expected an .npz of t, x, y"),
        ({}, "got the arrays nothing, expected an .npz of t, x, y, p"),
        (dict(COLUMNS, x=np.arange(2)), r"of shapes \(3,\), \(2,\), \(3,\), \(3,\)"),
        (dict(COLUMNS, t=np.arange(3.0)), "got t of type float64, expected integers"),
        (dict(COLUMNS, t=np.array([None])), "got what numpy cannot read, .*pickle"),
    ],
)
def test_other_arrays_are_refused(tmp_path, columns, message):
    with pytest.raises(ValueError, match=f"a.npz: .*{message}") as error:
        formats.read(write(tmp_path / "a.npz", columns))
    assert "\n" not in str(error.value)


def test_what_is_no_npz_or_cut(tmp_path):
    path = write(tmp_path / "a.npz")
    whole, alone = path.read_bytes(), io.BytesIO()
    np.save(alone, np.arange(3))
    spoilt = bytearray(whole)
    spoilt[150] ^= 1  # where the checksum of the archive finds it
    for content in (whole[:-100], whole[:40], b"", b"<html>", spoilt, alone.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.npz: got what numpy cannot read, exp"):
            formats.read(path)


def test_what_cannot_be_reached_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError, match="a.npz"):
        formats.read(tmp_path / "a.npz")
