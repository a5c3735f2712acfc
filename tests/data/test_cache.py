import json
import multiprocessing
import os
import re
import tempfile
import threading

import numpy as np
import pytest

from a2os2a_jax.data import cache

KEY = {"set": "a", "timesteps": 4, "sensor": [3, 5]}


def make(new, value=1):
    new("frames", (10, 3, 5), np.uint8)[:] = value
    new("labels", (10,), np.int32)[:] = np.arange(10)


def never(new):
    raise AssertionError("made again")


def cached(folder, key, make, **options):
    arrays, where = cache.cached([folder], key, make, say="made here", **options)
    assert where == folder
    return arrays


def left(folder):
    """What lies beside the results."""
    return sorted(p.name for p in folder.parent.iterdir() if p != folder)


def test_what_is_made_is_kept(tmp_path):
    folder = tmp_path / "deep" / ".frames"
    first = cached(folder, KEY, make)
    again = cached(folder, dict(KEY, sensor=(3, 5)), never, verify=True)
    for arrays in (first, again):
        assert sorted(arrays) == ["frames", "labels"]
        np.testing.assert_array_equal(arrays["frames"], np.ones((10, 3, 5), np.uint8))
        np.testing.assert_array_equal(arrays["labels"], np.arange(10))
        assert isinstance(arrays["frames"], np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            arrays["frames"][0] = 2
    assert left(folder) == []


def test_a_second_array_of_a_name_replaces_the_first(tmp_path):
    def widen(new):
        narrow = new("x", (4,), np.uint8)
        narrow[:] = 7
        wide = new("x", (4,), np.uint16)
        wide[:] = narrow
        wide[3] = 700

    arrays = cached(tmp_path / "c", KEY, widen)
    assert arrays["x"].tolist() == [7, 7, 7, 700]
    assert len(list((tmp_path / "c").glob("*.npy"))) == 1
    assert cache.in_memory(widen)["x"].tolist() == [7, 7, 7, 700]


def test_another_key_is_made_again_and_that_is_said(tmp_path, capsys):
    folder = tmp_path / "c"
    cached(folder, KEY | {"files": "3 files"}, make)
    assert capsys.readouterr().err == f"made here, {folder}\n"
    other = KEY | {"files": "4 files", "timesteps": 5}
    assert cache.load(folder, other) is None
    said = f"{folder}: not used, it was made of other files, with another timesteps\n"
    assert capsys.readouterr().err == said
    arrays = cached(folder, other, lambda new: make(new, 2))
    assert capsys.readouterr().err == f"{said}made here, {folder}\n"  # said once
    assert arrays["frames"][0, 0, 0] == 2 and left(tmp_path / "c") == []
    assert cache.load(tmp_path / "c", other) is not None


def spoil_manifest(folder):
    (folder / cache.MANIFEST).unlink()


def spoil_half_a_manifest(folder):
    path = folder / cache.MANIFEST
    path.write_text(path.read_text()[:50])


def spoil_length(folder):
    path = next(folder.glob("frames*"))
    path.write_bytes(path.read_bytes()[:-1])


def spoil_file(folder):
    next(folder.glob("labels*")).unlink()


def spoil_shape(folder):
    path = folder / cache.MANIFEST
    table = json.loads(path.read_text())
    table["files"]["frames"]["shape"] = [10, 5, 3]
    path.write_text(json.dumps(table))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_manifest, "got no manifest.json"),
        (spoil_half_a_manifest, "not used, "),
        (spoil_length, r"frames-1.npy has 277 bytes, not 278"),
        (spoil_file, "No such file"),
        (spoil_shape, "frames-1.npy is uint8"),
    ],
)
def test_what_is_not_whole_is_made_again_and_that_is_said(
    tmp_path, capsys, spoil, message
):
    cached(tmp_path / "c", KEY, make)
    spoil(tmp_path / "c")
    arrays = cached(tmp_path / "c", KEY, lambda new: make(new, 3))
    assert arrays["frames"].min() == 3
    found, made = capsys.readouterr().err.splitlines()[-2:]
    assert "not used, " in found and re.search(message, found)
    assert made.startswith("made here")
    assert cached(tmp_path / "c", KEY, never)["frames"].min() == 3
    assert left(tmp_path / "c") == []


def test_a_changed_byte_is_found_where_that_is_asked(tmp_path, capsys):
    cached(tmp_path / "c", KEY, make)
    path = next((tmp_path / "c").glob("frames*"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert cache.load(tmp_path / "c", KEY) is not None
    arrays = cached(tmp_path / "c", KEY, lambda new: make(new, 4), verify=True)
    assert arrays["frames"].min() == 4
    assert "frames-1.npy has another checksum" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_who_stops_on_the_way_leaves_nothing(tmp_path, error):
    def stop(new):
        new("frames", (4,), np.uint8)[:] = 1
        raise error("enough")

    with pytest.raises(error):
        cached(tmp_path / "c", KEY, stop)
    assert list(tmp_path.iterdir()) == []
    cached(tmp_path / "c", KEY, make)
    with pytest.raises(error):
        cached(tmp_path / "c", dict(KEY, set="b"), stop)
    assert cached(tmp_path / "c", KEY, never)["frames"].min() == 1


def killed(folder):
    def die(new):
        new("frames", (4,), np.uint8)[:] = 1
        os._exit(9)  # no finally, no goodbye

    cached(folder, KEY, die)


def test_who_is_killed_leaves_nothing_that_is_used(tmp_path):
    fork = multiprocessing.get_context("spawn")
    child = fork.Process(target=killed, args=(tmp_path / "c",))
    child.start()
    child.join()
    assert child.exitcode == 9
    (rest,) = tmp_path.iterdir()
    assert rest.name.startswith(".c.tmp-") and not (tmp_path / "c").exists()
    cached(tmp_path / "c", KEY, make)
    assert rest.exists()  # it might be at work
    for path in (*rest.iterdir(), rest):
        os.utime(path, (0, 0))
    cached(tmp_path / "c", dict(KEY, set="b"), make)
    assert left(tmp_path / "c") == []


def test_two_at_once_end_with_one_result(tmp_path):
    both = threading.Barrier(2)
    results = {}

    def work(value):
        def slow(new):
            both.wait()  # neither finds the other's result before it starts
            make(new, value)

        results[value] = cached(tmp_path / "c", KEY, slow)

    threads = [threading.Thread(target=work, args=(value,)) for value in (5, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = cached(tmp_path / "c", KEY, never, verify=True)["frames"]
    assert kept.min() == kept.max()
    for arrays in results.values():  # both hold what is kept
        np.testing.assert_array_equal(arrays["frames"], kept)
    assert left(tmp_path / "c") == []


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    assert cache.writable(tmp_path / "new" / "c")
    assert not cache.writable(tmp_path / "file" / "c")
    assert cache.load(tmp_path / "file" / "c", KEY) is None
    arrays = cache.in_memory(make)
    assert arrays["frames"].shape == (10, 3, 5)
    with pytest.raises(ValueError, match="read-only"):
        arrays["labels"][0] = 1


def test_the_first_folder_that_has_it_and_the_first_that_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    folders = [tmp_path / "file" / "c", tmp_path / "a" / "c", tmp_path / "b" / "c"]
    assert cache.cached(folders[:1], KEY, never, say="") is None
    for made in (make, never):
        arrays, folder = cache.cached(folders, KEY, made, say="")
        assert folder == folders[1] and arrays["frames"].min() == 1
    other = dict(KEY, set="b")
    cached(folders[2], other, make)
    arrays, folder = cache.cached(folders, other, never, say="")
    assert folder == folders[2]


def test_a_stamp_tells_of_every_change(tmp_path):
    files = [tmp_path / "a", tmp_path / "in" / "b"]
    files[1].parent.mkdir()
    for path in files:
        path.write_bytes(b"x")
        os.utime(path, (1, 1))
    seen = [cache.stamp(tmp_path, files), cache.stamp(tmp_path, files[:1])]
    assert cache.stamp(str(tmp_path), files) == seen[0]
    assert seen[0].startswith("2 files, ")
    os.utime(files[1], (1, 2))
    seen.append(cache.stamp(tmp_path, files))
    files[0].write_bytes(b"xy")
    os.utime(files[0], (1, 1))
    seen.append(cache.stamp(tmp_path, files))
    files[0] = files[0].rename(tmp_path / "c")
    seen.append(cache.stamp(tmp_path, files))
    assert len(set(seen)) == len(seen)


def test_where_a_user_keeps_things(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to("set")
    folder = cache.user_folder("a/b", tmp_path / "set", "labels")
    assert folder.parent.parent == tmp_path / "user" / "a2os2a_jax"
    assert folder.name == "labels" and folder.parent.name.startswith("a-b-")
    assert cache.user_folder("a/b", str(tmp_path / "link"), "labels") == folder
    assert cache.user_folder("a/b", tmp_path / "other", "labels") != folder


def test_json_is_kept_beside_arrays():
    value = {"3": "fünf", "4": ""}
    arrays = cache.in_memory(lambda new: cache.keep_json(new, "reasons", value))
    assert cache.kept_json(arrays, "reasons") == value
    assert (
        cache.kept_json(cache.in_memory(lambda new: cache.keep_json(new, "x", {})), "x")
        == {}
    )


def test_somebody_without_a_home_keeps_things_with_temporary_files(monkeypatch):
    """As in a container that runs as a user whom nobody knows."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    place = cache.user_folder("cifar10", "/data", "labels")
    assert place.is_relative_to(tempfile.gettempdir())
