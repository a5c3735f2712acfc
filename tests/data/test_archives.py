import os
import zipfile

import numpy as np
import pytest

from a2os2a_jax.data import archives


def read(path, names=("x",), **options):
    return archives.read(archives.scan(path), names, **options)


def test_arrays_are_shared_and_locked(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.ones(2))
    one, two = read(tmp_path / "a.npz"), read(tmp_path / "a.npz")
    assert one["x"] is two["x"] and one.keys() == {"x"}
    with pytest.raises(ValueError, match="read-only"):
        one["x"][0] = 5


def test_a_file_written_anew_in_the_same_moment_is_read_anew(tmp_path):
    path = tmp_path / "a.npz"
    for value in (1, 2):  # as many bytes, at the same time
        np.savez(path, x=np.full(3, value))
        os.utime(path, ns=(0, 0))
        assert read(path)["x"].tolist() == [value] * 3


def test_a_file_mended_in_place_is_read_anew(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(3))
    content = path.read_bytes()
    read(path)
    path.write_bytes(content.replace(np.arange(3).tobytes(), b"\7" * 24))
    with pytest.raises(ValueError, match="a.npz: not a whole .npz file: Bad CRC-32"):
        read(path)


def test_the_stamp_is_of_the_content(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    np.savez_compressed(tmp_path / "b.npz", x=np.arange(3))
    np.savez(tmp_path / "c.npz", x=np.arange(1, 4))
    np.savez(tmp_path / "d.npz", y=np.arange(3))
    a, b, c, d = (archives.scan(tmp_path / f"{name}.npz").stamp for name in "abcd")
    assert a == b and len({a, c, d}) == 3 and a.startswith("1 files, ")


@pytest.mark.parametrize("array", [np.array([None, 1]), np.array({"x": 1})])
def test_python_objects_are_not_unpickled(tmp_path, array):
    np.savez(tmp_path / "a.npz", x=array)
    with pytest.raises(ValueError, match="a.npz: got Python objects in x, .* plain"):
        read(tmp_path / "a.npz")


def test_other_files_by_this_name(tmp_path):
    path = tmp_path / "a.npz"
    with open(path, "wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(ValueError, match="got one array of numpy.save, expected"):
        read(path)
    path.write_text("<html>no such file</html>")
    with pytest.raises(ValueError, match="a.npz: got an HTML page"):
        read(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x", "no array")
    with pytest.raises(ValueError, match="a.npz: got a file x that is no array"):
        read(path)


def test_damage(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(1000))
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="a.npz: not a whole .npz file"):
        read(path)
    for at in range(60, 200, 20):
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        with pytest.raises(ValueError, match="a.npz: not a whole .npz file"):
            read(path)


def test_an_array_that_takes_more_memory_than_there_is(tmp_path):
    header = {"descr": "<f8", "fortran_order": False, "shape": (2**55,)}
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file, file.open("x.npy", "w") as x:
        np.lib.format.write_array_header_1_0(x, header)
    with pytest.raises(ValueError, match="a.npz: does not fit into memory"):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (np.zeros((2, 4)), r"b.npz: got x float64 \(2, 4\), expected float64 \(2, 3\)"),
        (np.zeros((2, 3), int), r"b.npz: got x int64 \(2, 3\), expected float64"),
        (np.array(3.0), r"b.npz: got x float64 \(\), expected float64 \(2, 3\)"),
    ],
)
def test_pieces_that_do_not_fit(tmp_path, other, message):
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3)))
    np.savez(tmp_path / "b.npz", x=other)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_pieces_are_joined_or_alike(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(2), names=["p", "q"])
    np.savez(tmp_path / "b.npz", x=np.arange(3), names=["p", "q"])
    np.savez(tmp_path / "c.npz", x=np.arange(1))
    found = read(tmp_path, ("x", "names"), alike=("names",))
    assert found["x"].tolist() == [0, 1, 0, 1, 2, 0] and len(found["names"]) == 2
    np.savez(tmp_path / "c.npz", names=["p", "r"])
    with pytest.raises(ValueError, match="c.npz: got names .* expected the same"):
        read(tmp_path, ("x", "names"), alike=("names",))
