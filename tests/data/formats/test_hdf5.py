import sys

import numpy as np
import pytest

from a2os2a_jax.data import formats

COLUMNS = {
    "t": np.array([10, 20, 30], np.int64),
    "x": np.array([1, 2, 3], np.uint16),
    "y": np.array([4, 5, 6], np.uint16),
    "p": np.array([0, 1, 1], np.int16),
}
KIND = [("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")]


def table(columns=COLUMNS, kind=KIND):
    rows = np.zeros(len(columns["t"]), kind)
    for name, column in columns.items():
        rows[name] = column
    return rows


FLOAT_X = [("x", "<f4"), *KIND[1:]]
LAYOUTS = {
    "events": {"events": dict(COLUMNS)},
    "top": dict(COLUMNS, height=np.array([34])),
    "signed": {"events": dict(COLUMNS, p=np.array([-1, 1, 1], np.int8))},
    "truth": dict(COLUMNS, p=np.array([False, True, True])),
    "table": {"CD": {"events": table(), "indexes": np.zeros(3)}},
}


@pytest.fixture
def write(tmp_path):
    """write(content) -> the path of a file with these groups and data sets."""
    h5py = pytest.importorskip("h5py", reason="no h5py: pip install 'h5py>=3.11'")

    def fill(group, content):
        for name, value in content.items():
            if isinstance(value, dict):
                fill(group.create_group(name), value)
            else:
                group[name] = value

    def write(content):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            fill(file, content)
        return tmp_path / "a.h5"

    return write


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(write, layout):
    e = formats.read(write(LAYOUTS[layout]))
    assert e.t.tolist() == [10, 20, 30] and e.p.tolist() == [0, 1, 1]
    assert e.x.tolist() == [1, 2, 3] and e.y.tolist() == [4, 5, 6]
    assert [column.dtype for column in e] == [np.int64, np.int32, np.int32, np.uint8]


def test_a_clock_of_32_bits_may_start_again(write):
    t = np.array([2**32 - 2, 2**32 - 1, 1])
    e = formats.read(write(dict(COLUMNS, t=t.astype(np.uint32))))
    assert e.t.tolist() == [2**32 - 2, 2**32 - 1, 2**32 + 1]
    e = formats.read(write(dict(COLUMNS, t=t)))
    assert e.t.tolist() == [1, 2**32 - 2, 2**32 - 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"frames": 1, "label": 2}, "got frames, label, expected events/t, x, y, p"),
        ({}, "got nothing, expected"),
        ({"CD": 1, "events": 2}, "got CD, events, expected"),
        ({"events": dict(COLUMNS, x={})}, "got events, expected"),
        (dict(COLUMNS, x=np.arange(2)), r"of shapes \(3,\), \(2,\), \(3,\), \(3,\)"),
        (dict.fromkeys("txyp", 5), r"of shapes \(\), \(\), \(\), \(\), expected one"),
        (dict.fromkeys("txyp", "five"), r"of shapes \(\), "),
        ({"CD": {"events": table()[0]}}, r"of shapes \(\), "),
        (dict(COLUMNS, t=np.array([0.1, 0.2, 0.3])), "got t of type float64, expected"),
        (dict(COLUMNS, x=np.ones(3, np.float32)), "got x of type float32, expected in"),
        ({"events": dict(COLUMNS, y=np.ones(3))}, "got events/y of type float64"),
        (dict(COLUMNS, y=np.ones(3, np.bool_)), "got y of type bool"),
        (dict(COLUMNS, p=np.ones(3)), "got p of type float64"),
        ({"CD": {"events": table(kind=FLOAT_X)}}, "got CD/events x of type float32"),
    ],
)
def test_other_files_are_refused(write, content, message):
    with pytest.raises(ValueError, match=f"a.h5: .*{message}"):
        formats.read(write(content))


def test_what_is_no_hdf5_or_cut(write, tmp_path):
    cut, other = write(COLUMNS), tmp_path / "b.hdf5"
    cut.write_bytes(cut.read_bytes()[:-100])
    other.write_bytes(b"no HDF5")
    for path in (cut, other):
        with pytest.raises(ValueError, match=f"{path.name}: got what h5py cannot read"):
            formats.read(path)


def test_what_cannot_be_reached_is_an_error_of_the_system(write, tmp_path):
    path = write(COLUMNS)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="a.h5"):
        formats.read(path)
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="a.h5"):
        formats.read(path)


def test_without_h5py_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="a.h5: HDF5 needs h5py: pip install h5py"):
        formats.read(tmp_path / "a.h5")
