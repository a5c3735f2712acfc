"""Files that are whole or absent, readable by whom the umask lets read."""

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from a2os2a_jax import files
from a2os2a_jax.analysis.plots import base
from a2os2a_jax.interop import torch_files, weights
from a2os2a_jax.train import workdir

VARIABLES = {"params": {"head": {"kernel": np.ones((2, 2), np.float32)}}}
ARRAYS = {"head.weight": np.ones((2, 2), np.float32)}
WRITERS = {  # name of a file -> what writes it
    "ours.safetensors": lambda path: weights.save(path, VARIABLES),
    "ours.npz": lambda path: weights.save(path, VARIABLES),
    "theirs.safetensors": lambda path: torch_files.write(path, ARRAYS, {}),
    "result.json": lambda path: workdir.write_json(path, {"a": 1}),
    "empty.png": lambda path: base.save(base.figure(1, 1), path),
}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_has_the_mode_of_any_other(tmp_path, umask, name):
    WRITERS[name](tmp_path / name)
    assert oct(mode(tmp_path / name)) == oct(0o666 & ~umask)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_block_that_raises_leaves_all_as_it_was(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), files.write_atomically(path) as temp:
        temp.write_text("half")
        assert files.is_unfinished(temp.name) and temp.parent == path.parent
        raise ZeroDivisionError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    assert not files.is_unfinished(path.name)


def test_the_last_of_two_writers_wins_and_neither_is_torn(tmp_path):
    path = tmp_path / "result.json"
    with files.write_atomically(path) as first, files.write_atomically(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), files.write_atomically(tmp_path / "a/b"):
        pass


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left on device: '.*/a.json'"):
        with files.write_atomically(tmp_path / "a.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_home_directory_is_found_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.expanded("~/runs") == tmp_path / "runs"
    assert files.expanded("a/~b") == Path("a/~b")
    with pytest.raises(ValueError, match="got ~nobody-here/x, expected a path without"):
        files.expanded("~nobody-here/x")
