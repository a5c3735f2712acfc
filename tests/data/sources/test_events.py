import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from a2os2a_jax.data import cache, formats, images
from a2os2a_jax.data.sources import events


def batch(split, index):
    out = split.gather(split.resident, split.fetch(np.asarray(index)))
    return np.asarray(out["image"]), np.asarray(out["label"])


def load(name, root, **options):
    options = {"timesteps": 4} | options
    return events.load(name, data_dir=str(root), **options)


def test_nmnist(recorded, nmnist):
    d = load("nmnist", nmnist, size=36, validation=10)
    assert (d.train.size, d.validation.size, d.test.size) == (20, 10, 10)
    assert d.shape == (4, 36, 36, 2) and d.classes == 10 and d.name == "nmnist"
    assert d.class_names == tuple("0123456789") and "N-MNIST" in d.about
    assert d.mean == (0.0,) and d.std == (1.0,)
    x, y = batch(d.test, [7, 2])
    assert x.dtype == np.float32 and y.tolist() == [7, 2]
    for image, digit in zip(x, y, strict=True):
        rows = recorded.some(10 * digit + 3, (34, 34))
        np.testing.assert_array_equal(
            image[:, 1:35, 1:35], recorded.counted(rows, 4, (34, 34))
        )
        assert image.sum() == len(rows)
    labels = np.concatenate(
        [batch(s, range(s.size))[1] for s in (d.train, d.validation)]
    )
    assert np.bincount(labels).tolist() == [3] * 10
    assert np.bincount(batch(d.validation, range(10))[1]).tolist() == [1] * 10


def test_nmnist_by_time(recorded, nmnist):
    d = load("nmnist", nmnist, slice_by="time", timesteps=3)
    (x,), _ = batch(d.test, [4])
    t = np.array(recorded.some(43, (34, 34)))[:, 0]
    part = (t - t[0]) * 3 // (t[-1] - t[0] + 1)
    assert x.sum((1, 2, 3)).tolist() == np.bincount(part).tolist()


def test_it_compiles_and_gathers_under_jit(nmnist):
    split = load("nmnist", nmnist, size=16, fit="resize").train
    index = np.array([3, 1, 3])
    eager = split.gather(split.resident, split.fetch(index))
    jitted = jax.jit(split.gather)(split.resident, split.fetch(index))
    assert jitted["image"].shape == (3, 4, 16, 16, 2)
    np.testing.assert_allclose(jitted["image"], eager["image"], rtol=1e-5, atol=1e-6)


def test_a_large_set_is_read_batch_by_batch_and_gives_the_same(nmnist, monkeypatch):
    small = load("nmnist", nmnist, validation=10)
    monkeypatch.setattr(images, "RESIDENT_GIB", 1e-6)
    large = load("nmnist", nmnist, validation=10)
    assert small.train.resident and large.train.resident == ()
    for part in ("train", "validation", "test"):
        a, b = small.split(part), large.split(part)
        assert a.size == b.size
        for index in ([0], [5, 5, 1], range(a.size)):
            for have, want in zip(batch(b, index), batch(a, index), strict=True):
                np.testing.assert_array_equal(have, want)
                assert have.dtype == want.dtype
    sent = large.train.fetch(np.array([1, 2]))
    assert sent["image"].dtype == np.uint8 and not isinstance(sent["image"], np.memmap)


def test_how_much_may_live_on_the_devices(nmnist):
    bytes_ = 40 * 4 * 34 * 34 * 2
    for gib, resident in ((bytes_ / 2**30, True), ((bytes_ - 1) / 2**30, False)):
        assert bool(load("nmnist", nmnist, resident_gib=gib).train.resident) is resident
    assert load("nmnist", nmnist, resident_gib=0).train.resident == ()
    for gib in (-1, float("nan")):
        with pytest.raises(ValueError, match="data.resident_gib: got .*at least 0"):
            load("nmnist", nmnist, resident_gib=gib)


def test_validation_of_gestures_is_on_people_who_are_not_trained_on(recorded, tmp_path):
    root = tmp_path / "dvs128_gesture"
    recorded.gestures(root)
    names, of = [], {}
    for user in range(1, 6):
        for light in ("fluorescent", "led"):  # two recordings of each of five people
            name = f"user{user:02}_{light}"
            rows = [[1000 + user, user, y, 1] for y in range(4)]
            recorded.write_aedat3(root / f"{name}.aedat", rows)
            table = "class,startTime_usec,endTime_usec\n1,0,2000\n2,0,2000\n"
            (root / f"{name}_labels.csv").write_text(table)
            names.append(f"{name}.aedat")
    (root / "trials_to_train.txt").write_text("\n".join(names))

    def people(split):
        return [int(x.sum((0, 1, 3)).argmax()) for x in split.resident[0]]

    for count, held in ((1, 1), (4, 1), (5, 2), (16, 4)):
        d = load("dvs128_gesture", tmp_path, validation=count)
        of[count] = set(people(d.validation))
        assert len(of[count]) == held and d.validation.size == 4 * held >= count
        assert sorted([*of[count], *set(people(d.train))]) == [1, 2, 3, 4, 5]
        assert d.train.size == 4 * (5 - held) and d.test.size == 3
    assert of[4] == of[1] < of[5] < of[16]  # one order, always the same
    assert load("dvs128_gesture", tmp_path).validation is None
    for count in (17, 20):
        with pytest.raises(ValueError, match=f"got {count} examples, expected 0 to 16"):
            load("dvs128_gesture", tmp_path, validation=count)


# The cache.


def built(capsys):
    return "making frames" in capsys.readouterr().err


def test_frames_are_made_once(nmnist, capsys):
    load("nmnist", nmnist)
    assert built(capsys)
    assert (nmnist / "nmnist" / ".frames-4-count" / cache.MANIFEST).is_file()
    load("nmnist", nmnist, size=48, validation=10)  # the same frames
    assert not built(capsys)
    load("nmnist", nmnist, timesteps=5)
    assert built(capsys)
    load("nmnist", nmnist, slice_by="time")
    assert built(capsys)
    load("nmnist", nmnist)
    assert not built(capsys)


def test_frames_are_made_again_when_a_file_changes(recorded, nmnist, capsys):
    before = batch(load("nmnist", nmnist).test, range(10))[0]
    path = nmnist / "nmnist" / "Test" / "3" / "00003.bin"
    recorded.write_bin(path, recorded.some(999, (34, 34)))  # of the same size
    os.utime(path, (1, 1))
    capsys.readouterr()
    after = batch(load("nmnist", nmnist).test, range(10))[0]
    assert capsys.readouterr().err.count("not used, it was made of other files") == 1
    same = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [i != 3 for i in range(10)]


def test_frames_go_elsewhere_where_the_data_cannot_be_written(
    nmnist, monkeypatch, tmp_path_factory, capsys
):
    want = batch(load("nmnist", nmnist).test, range(10))
    home = nmnist / "nmnist"
    for path in (home / ".frames-4-count").iterdir():
        path.unlink()
    (home / ".frames-4-count").rmdir()
    user = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("XDG_CACHE_HOME", str(user))
    able = cache.writable
    monkeypatch.setattr(
        cache, "writable", lambda folder: home not in folder.parents and able(folder)
    )
    for _ in range(2):
        got = batch(load("nmnist", nmnist).test, range(10))
        np.testing.assert_array_equal(got[0], want[0])
    said = capsys.readouterr().err
    assert said.count("making frames") == 2  # once in each place
    (kept,) = user.glob("a2os2a_jax/nmnist-*/frames-4-count")
    assert sorted(p.name for p in home.iterdir()) == ["Test", "Train"]
    # nowhere at all: kept in memory if small
    monkeypatch.setattr(cache, "writable", lambda folder: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(user / "none"))
    got = batch(load("nmnist", nmnist).test, range(10))
    np.testing.assert_array_equal(got[0], want[0])
    monkeypatch.setattr(images, "RESIDENT_GIB", 1e-6)
    with pytest.raises(
        ValueError, match="nmnist: can write its frames to neither .*XDG"
    ):
        load("nmnist", nmnist)


def test_more_than_255_events_in_a_pixel(recorded, nmnist):
    rows = [[i, 5, 6, 1] for i in range(1200)]
    recorded.write_bin(nmnist / "nmnist" / "Train" / "2" / "00001.bin", rows)
    d = load("nmnist", nmnist)
    x, y = batch(d.train, range(30))
    assert x.max() == 300 and np.asarray(d.train.resident[0]).dtype == np.uint16
    # those before it were moved, those after it were written where they belong
    for i, digit in ((0, 0), (29, 9)):
        rows = recorded.some(10 * digit + i % 3, (34, 34))
        np.testing.assert_array_equal(x[i], recorded.counted(rows, 4, (34, 34)))
    files = list((nmnist / "nmnist" / ".frames-4-count").glob("frames*"))
    assert len(files) == 1


def test_frames_that_changed_are_made_again_where_that_is_asked(nmnist, capsys):
    before = batch(load("nmnist", nmnist).test, range(10))[0]
    path = next((nmnist / "nmnist" / ".frames-4-count").glob("frames*"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    load("nmnist", nmnist)
    assert not built(capsys)
    after = batch(load("nmnist", nmnist, verify=True).test, range(10))[0]
    np.testing.assert_array_equal(after, before)
    assert "has another checksum" in capsys.readouterr().err


# What cannot be read.


def spoil_cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def spoil_empty(path):
    path.write_bytes(b"")


def spoil_outside(path, count=3):
    event = bytes([34, 0]) + (1 << 23 | 90_001).to_bytes(3, "big")
    path.write_bytes(path.read_bytes() + event * count)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_cut, "where it ends, .* the file is cut"),
        (spoil_empty, "got no events"),
        (spoil_outside, "got 3 of 43 events outside the sensor"),
    ],
)
def test_unreadable_recordings(nmnist, capsys, spoil, message):
    paths = [nmnist / "nmnist" / "Train" / "4" / f"{i:05}.bin" for i in (1, 2)]
    whole = load("nmnist", nmnist, validation=10)
    for path in paths:
        spoil(path)
    with pytest.raises(images.Corrupt, match=f"4/00001.bin: .*{message}.*corrupt=skip"):
        load("nmnist", nmnist)
    for attempt in range(2):  # made, and then from the cache
        capsys.readouterr()
        d = load("nmnist", nmnist, validation=10, corrupt="skip")
        *named, count = capsys.readouterr().err.splitlines()[-3:]
        assert count == "nmnist: 2 of 40 recordings cannot be read; skipped", attempt
        for path, line in zip(paths, named, strict=True):
            assert line.startswith(f"nmnist: left out {path}: ")
            assert re.search(message, line) and line.count(str(path)) == 1
    sizes = d.train.size, d.validation.size, d.test.size
    assert sum(sizes) == 38 and d.test.size == 10
    # no other example moved to another split
    for part in ("train", "validation"):
        have = batch(d.split(part), range(d.split(part).size))
        want = batch(whole.split(part), range(whole.split(part).size))
        kept = [any(np.array_equal(w, h) for h in have[0]) for w in want[0]]
        assert sum(kept) == len(have[0])
    # what was skipped once is no excuse
    folder = re.escape(str(nmnist / "nmnist" / ".frames-4-count"))
    first = rf"2 of 40 recordings cannot be read, the first: .*4/00001.bin: .*{message}"
    with pytest.raises(
        images.Corrupt, match=rf"{first}.*corrupt=skip.* delete {folder}$"
    ):
        load("nmnist", nmnist)


def test_a_stray_event_is_left_out_and_counted(nmnist, capsys):
    want = batch(load("nmnist", nmnist).test, range(10))
    paths = [nmnist / "nmnist" / "Test" / digit / "00003.bin" for digit in "47"]
    for count, path in zip((1, 2), paths, strict=True):
        spoil_outside(path, count)
    for corrupt in ("error", "skip"):  # made, and then from the cache
        capsys.readouterr()
        got = batch(load("nmnist", nmnist, corrupt=corrupt).test, range(10))
        for have, wanted in zip(got, want, strict=True):
            np.testing.assert_array_equal(have, wanted)
        assert capsys.readouterr().err.splitlines()[-1] == (
            "nmnist: left out 3 events outside the sensor, in 2 of 40 recordings, the "
            f"first: {paths[0]}"
        )


def test_the_stamp_is_of_the_recordings_and_not_of_where_they_lie(
    recorded, nmnist, tmp_path
):
    stamp = load("nmnist", nmnist).stamp
    (nmnist / "nmnist" / "Train" / ".DS_Store").write_bytes(b"litter")
    copy = tmp_path / "copy" / "N-MNIST" / "wrapper"
    shutil.copytree(nmnist / "nmnist", copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    assert stamp and load("nmnist", tmp_path / "copy").stamp == stamp
    rows = recorded.some(0, (34, 34), 41)
    recorded.write_bin(copy / "Train" / "3" / "00000.bin", rows)
    assert load("nmnist", tmp_path / "copy").stamp != stamp
    (copy / "Train" / "3" / "00000.bin").unlink()
    assert load("nmnist", tmp_path / "copy").stamp != stamp


def test_five_are_named_and_all_are_counted(nmnist, capsys):
    for path in sorted((nmnist / "nmnist" / "Train").rglob("*.bin"))[:7]:
        spoil_cut(path)
    load("nmnist", nmnist, corrupt="skip")
    said = capsys.readouterr().err.splitlines()
    assert sum("left out" in line for line in said) == 5
    assert said[-1] == "nmnist: 7 of 40 recordings cannot be read; skipped"


def test_an_error_of_the_system_is_not_kept_as_an_unreadable_recording(
    nmnist, monkeypatch, capsys
):
    read = formats.read

    def once_unreachable(path, mend):
        if path.parts[-2:] == ("4", "00001.bin"):
            raise OSError(5, "Input/output error")
        return read(path, mend)

    home = nmnist / "nmnist"
    with monkeypatch.context() as patch:
        patch.setattr(formats, "read", once_unreachable)
        for corrupt in ("skip", "error"):
            with pytest.raises(
                OSError, match="4/00001.bin: .*Input/output error; no frames are kept"
            ):
                load("nmnist", nmnist, corrupt=corrupt)
        assert sorted(p.name for p in home.iterdir()) == ["Test", "Train"]
    assert load("nmnist", nmnist, corrupt="skip").train.size == 30
    assert "cannot be read" not in capsys.readouterr().err


def test_a_split_without_a_readable_recording(nmnist):
    for path in (nmnist / "nmnist" / "Test").rglob("*.bin"):
        spoil_empty(path)
    with pytest.raises(ValueError, match="nmnist: got no readable test recording"):
        load("nmnist", nmnist, corrupt="skip")


def test_a_gesture_without_events(recorded, tmp_path, capsys):
    table = "class,startTime_usec,endTime_usec\n1,5,9\n2,1000000,1090000\n"
    recorded.gestures(tmp_path / "dvs128_gesture", table=table)
    d = load("dvs128_gesture", tmp_path, corrupt="skip")
    assert (d.train.size, d.test.size) == (1, 1)
    assert "2 of 4 recordings" in capsys.readouterr().err


# What is not there, or not as it should be.


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nmnist2", {}, "data.name: got 'nmnist2', expected cifar10_dvs, "),
        ("nmnist", {"classes": 9}, "data.classes: got 9, nmnist has 10"),
        ("nmnist", {"size": 32}, "data.size: got 32, expected at least 34 to pad"),
        ("nmnist", {"fit": "zoom"}, "data.fit: got 'zoom', expected pad, resize, crop"),
        (
            "nmnist",
            {"slice_by": "events"},
            "data.slice_by: got 'events', expected count",
        ),
        ("nmnist", {"corrupt": "keep"}, "data.corrupt: got 'keep'"),
        ("nmnist", {"timesteps": 0}, "nmnist: got timesteps 0"),
        (
            "nmnist",
            {"validation": 30},
            "data.validation: got 30 examples, expected 0 to 29",
        ),
    ],
)
def test_arguments_that_do_not_fit(nmnist, name, options, message):
    with pytest.raises(ValueError, match=message):
        load(name, nmnist, **options)


# Recordings of a real camera.


@pytest.fixture
def sample(tfds_dir):
    return tfds_dir("nmnist_sample")


def test_the_sample_of_nmnist(sample):
    d = events.load(
        "nmnist_sample", data_dir=sample, timesteps=5, size=36, validation=60
    )
    assert (d.train.size, d.validation.size, d.test.size) == (540, 60, 100)
    assert d.shape == (5, 36, 36, 2) and d.class_names == tuple("0123456789")
    whole = events.load("nmnist_sample", data_dir=sample, timesteps=5)
    x, y = batch(whole.train, range(600))
    counts = np.bincount(y)
    assert (counts.min(), counts.max(), counts.argmax()) == (49, 79, 1)
    # as many events in each slice but the last; about 4,000 in all
    sums = x.sum((2, 3, 4))
    assert (sums[:, :1] == sums[:, :4]).all() and 3000 < x.sum() / 600 < 5000


def test_the_sample_shows_digits(sample):
    """Upright: x is a column from the left, y a row from the top."""
    d = events.load("nmnist_sample", data_dir=sample, timesteps=1)
    x, y = batch(d.train, range(600))
    means = {digit: x[y == digit].mean(0).sum((0, 3)) for digit in range(10)}
    assert means[0][15:19, 15:19].mean() < 0.5 * means[0][8:26, 8:26].mean()  # a hole
    one = means[1]
    assert one.sum(0).std() > 1.5 * one.sum(1).std()  # a stroke from top to bottom
    seven = means[7]  # a bar at the top, its foot to the left of the bar's end
    assert seven[:17].sum() > seven[17:].sum()
    assert means[6][:17].sum() < means[6][17:].sum()
    columns = np.arange(34)
    top, foot = (
        seven[rows].sum(0) @ columns for rows in (slice(13, 17), slice(24, 28))
    )
    top, foot = top / seven[13:17].sum(), foot / seven[24:28].sum()
    assert foot < top - 2


def test_the_file_and_the_sample_agree(recorded, sample, tmp_path):
    """The same format, by two ways: a recording of the sample, written and read."""
    import tensorflow_datasets as tfds

    row = tfds.data_source("nmnist_sample", split="test", data_dir=sample)[0]
    rows = np.stack([row[name].astype(int) for name in "txyp"], 1).tolist()
    for digit in "0123456789":
        for part in ("Train", "Test"):
            recorded.write_bin(tmp_path / "nmnist" / part / digit / "1.bin", rows)
    (file,), _ = batch(load("nmnist", tmp_path).test, [0])
    direct = events.load("nmnist_sample", data_dir=sample, timesteps=4)
    (there,), _ = batch(direct.test, [0])
    np.testing.assert_array_equal(file, there)


def test_the_sample_is_read_anew_when_it_is_written_anew(sample, tmp_path):
    from array_record.python import array_record_module

    folder = tmp_path / "nmnist_sample" / "1.0.0"
    shutil.copytree(f"{sample}/nmnist_sample/1.0.0", folder)
    stamps, labels = [], []
    for _ in range(2):
        d = events.load("nmnist_sample", data_dir=str(tmp_path), timesteps=1)
        stamps.append(d.stamp)
        labels.append(d.test.resident[1].tolist())
        (path,) = folder.glob("*test.array_record*")
        reader = array_record_module.ArrayRecordReader(str(path))
        rows = reader.read_all()
        reader.close()
        path.unlink()
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for row in rows[::-1]:
            writer.write(row)
        writer.close()
    assert labels[1] == labels[0][::-1] != labels[0]
    assert stamps[0] != stamps[1]
    spoilt = bytearray(path.read_bytes())
    spoilt[5000:5100] = bytes(100)
    path.write_bytes(spoilt)
    with pytest.raises(images.Corrupt, match=f"{folder} test: cannot be read: ") as e:
        events.load("nmnist_sample", data_dir=str(tmp_path), timesteps=1)
    assert "\n" not in str(e.value)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path}: .* it is cut or damaged"):
        events.load("nmnist_sample", data_dir=str(tmp_path), timesteps=1)


def test_the_sample_is_missing(tmp_path):
    with pytest.raises(ValueError, match=f"found no nmnist_sample in {tmp_path}"):
        events.load("nmnist_sample", data_dir=str(tmp_path))
    assert not list(Path(tmp_path).iterdir())
