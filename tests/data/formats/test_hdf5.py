import sys
import types

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


def table(columns=COLUMNS):
    rows = np.zeros(len(columns["t"]), KIND)
    for name, column in columns.items():
        rows[name] = column
    return rows


LAYOUTS = {
    "events": {"events": dict(COLUMNS)},
    "top": dict(COLUMNS, height=np.array([34])),
    "signed": {"events": dict(COLUMNS, p=np.array([-1, 1, 1], np.int8))},
    "table": {"CD": {"events": table(), "indexes": np.zeros(3)}},
}


class Group(dict):
    """As much of an h5py group as is needed."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """stand_in(content) -> a path that a stand-in for h5py opens as that."""

    def make(content):
        path = tmp_path / "a.h5"
        path.touch()
        h5py = types.ModuleType("h5py")
        h5py.File = lambda name, mode: Group(content)
        monkeypatch.setitem(sys.modules, "h5py", h5py)
        return path

    return make


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(stand_in, layout):
    e = formats.read(stand_in(LAYOUTS[layout]))
    assert e.t.tolist() == [10, 20, 30] and e.p.tolist() == [0, 1, 1]
    assert e.x.tolist() == [1, 2, 3] and e.y.tolist() == [4, 5, 6]
    assert [column.dtype for column in e] == [np.int64, np.int32, np.int32, np.uint8]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_with_h5py(tmp_path, layout):
    h5py = pytest.importorskip("h5py")

    def fill(group, content):
        for name, value in content.items():
            if isinstance(value, dict):
                fill(group.create_group(name), value)
            else:
                group[name] = value

    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        fill(file, LAYOUTS[layout])
    e = formats.read(tmp_path / "a.hdf5")
    assert [c.tolist() for c in e] == [[10, 20, 30], [1, 2, 3], [4, 5, 6], [0, 1, 1]]
    (tmp_path / "b.h5").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match="b.h5: got what h5py cannot read, expected"):
        formats.read(tmp_path / "b.h5")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"frames": 1, "label": 2}, "got frames, label, expected events/t, x, y, p"),
        ({}, "got nothing, expected"),
        (dict(COLUMNS, x=np.arange(2)), r"of shapes \(3,\), \(2,\), \(3,\), \(3,\)"),
        (dict(COLUMNS, t=np.array([0.1, 0.2, 0.3])), "got times of type float64"),
    ],
)
def test_other_files_are_refused(stand_in, content, message):
    with pytest.raises(ValueError, match=f"a.h5: .*{message}"):
        formats.read(stand_in(content))


def test_a_missing_file_is_missing(stand_in):
    path = stand_in({})
    path.unlink()
    with pytest.raises(FileNotFoundError, match="a.h5"):
        formats.read(path)


def test_without_h5py_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="a.h5: HDF5 needs h5py: pip install h5py"):
        formats.read(tmp_path / "a.h5")
