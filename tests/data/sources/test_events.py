import os
import re
import struct
from pathlib import Path

import jax
import numpy as np
import pytest

from a2os2a_jax.data import cache, images
from a2os2a_jax.data.sources import events

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()


def write_bin(path, rows):
    """rows [E, 4]: t, x, y, p, as the page of N-MNIST describes them."""
    parts = [bytes([x, y]) + (p << 23 | t).to_bytes(3, "big") for t, x, y, p in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(parts))


def write_aedat2(path, rows):
    """rows [E, 4]: t, raw x, raw y, polarity bit."""
    parts = [struct.pack(">II", y << 8 | x << 1 | p, t) for t, x, y, p in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"#!AER-DAT2.0\r\n# jAER\r\n" + b"".join(parts))


def write_aedat3(path, rows):
    """rows [E, 4]: t, x, y, p, in one packet."""
    head = struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(rows), len(rows), len(rows))
    parts = [
        struct.pack("<II", x << 17 | y << 2 | p << 1 | 1, t) for t, x, y, p in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    start = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"
    path.write_bytes(start + head + b"".join(parts))


def some(seed, sensor, count=40, start=0):
    """Rows of a recording whose every event differs from other seeds'."""
    rng = np.random.RandomState(seed)
    t = np.sort(rng.randint(start, start + 90_000, count))
    x, y = rng.randint(0, sensor[1], count), rng.randint(0, sensor[0], count)
    return np.stack([t, x, y, rng.randint(0, 2, count)], 1).tolist()


def counted(rows, timesteps, sensor):
    """Frames of rows by count, one event after the other."""
    out = np.zeros((timesteps, *sensor, 2), np.float32)
    for i, (_, x, y, p) in enumerate(rows):
        k = min(i // (len(rows) // timesteps), timesteps - 1)
        out[k, y, x, p] += 1
    return out


def batch(split, index):
    out = split.gather(split.resident, split.fetch(np.asarray(index)))
    return np.asarray(out["image"]), np.asarray(out["label"])


@pytest.fixture
def nmnist(tmp_path):
    """3 + 1 recordings of each digit; seeds tell them apart."""
    for digit in range(10):
        for i in range(4):
            part = "Test" if i == 3 else "Train"
            path = tmp_path / "nmnist" / part / str(digit) / f"{i:05}.bin"
            write_bin(path, some(10 * digit + i, (34, 34)))
    return tmp_path


def load(name, root, **options):
    options = {"timesteps": 4} | options
    return events.load(name, data_dir=str(root), **options)


def test_nmnist(nmnist):
    d = load("nmnist", nmnist, size=36, validation=10)
    assert (d.train.size, d.validation.size, d.test.size) == (20, 10, 10)
    assert d.shape == (4, 36, 36, 2) and d.classes == 10 and d.name == "nmnist"
    assert d.class_names == tuple("0123456789") and "N-MNIST" in d.about
    assert d.mean == (0.0,) and d.std == (1.0,)
    x, y = batch(d.test, [7, 2])
    assert x.dtype == np.float32 and y.tolist() == [7, 2]
    for image, digit in zip(x, y, strict=True):
        rows = some(10 * digit + 3, (34, 34))
        np.testing.assert_array_equal(image[:, 1:35, 1:35], counted(rows, 4, (34, 34)))
        assert image.sum() == len(rows)
    labels = np.concatenate(
        [batch(s, range(s.size))[1] for s in (d.train, d.validation)]
    )
    assert np.bincount(labels).tolist() == [3] * 10
    assert np.bincount(batch(d.validation, range(10))[1]).tolist() == [1] * 10


def test_nmnist_by_time(nmnist):
    d = load("nmnist", nmnist, slice_by="time", timesteps=3)
    (x,), _ = batch(d.test, [4])
    t = np.array(some(43, (34, 34)))[:, 0]
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


def test_cifar10_dvs(tmp_path):
    root = tmp_path / "CIFAR10-DVS"  # as people call it
    raw = {}
    for label, name in enumerate(CIFAR10):
        for i in range(10):
            rows = some(100 * label + i, (128, 128))
            raw[label, i] = rows
            write_aedat2(root / name / f"cifar10_{name}_{i}.aedat", rows)
    d = load("cifar10_dvs", tmp_path)
    assert (d.train.size, d.test.size, d.classes) == (90, 10, 10)
    assert d.class_names == tuple(CIFAR10) and d.shape == (4, 128, 128, 2)
    x, y = batch(d.test, range(10))
    assert y.tolist() == list(range(10))  # one of ten of each class
    seen = set()
    for split in (d.train, d.test):
        for image, label in zip(*batch(split, range(split.size)), strict=True):
            hits = [
                i
                for i in range(10)
                # what SpikingJelly does: x = 127 - raw y, y = 127 - raw x, p = 1 - bit
                if np.array_equal(
                    image,
                    counted(
                        [(t, 127 - y, 127 - x, 1 - p) for t, x, y, p in raw[label, i]],
                        4,
                        (128, 128),
                    ),
                )
            ]
            assert len(hits) == 1
            seen.add((int(label), hits[0]))
    assert len(seen) == 100  # every recording is in one split, once
    again = load("cifar10_dvs", tmp_path)
    np.testing.assert_array_equal(batch(again.test, range(10))[0], x)


def gestures(root, **change):
    """Two people, three gestures each, one after the other; 50 ms between them."""
    root.mkdir(parents=True)
    recordings = {}
    for user in ("user01_led", "user24_lab"):
        rows, lines = [], ["class,startTime_usec,endTime_usec"]
        for k, gesture in enumerate((2, 11, 1)):
            start = 1_000_000 * (k + 1)
            piece = some(user.__hash__() % 2**31, (128, 128), 60, start)
            recordings[user, gesture] = piece
            # events at the start belong to it, at the end no more
            rows += [[start - 10, 0, 0, 1], *piece, [start + 90_000, 0, 0, 1]]
            lines.append(f"{gesture},{start},{start + 90_000}")
        write_aedat3(root / f"{user}.aedat", rows)
        table = "\n".join(lines) + "\n"
        (root / f"{user}_labels.csv").write_text(change.get("table", table))
    train = change.get("train", "user01_led.aedat\n\n")
    (root / "trials_to_train.txt").write_text(train)
    (root / "trials_to_test.txt").write_text("user24_lab.aedat\n")
    return recordings


@pytest.mark.parametrize("inner", ["", "DvsGesture"])
def test_dvs128_gesture(tmp_path, inner):
    recordings = gestures(tmp_path / "dvs128_gesture" / inner)
    d = load("dvs128_gesture", tmp_path)
    assert (d.train.size, d.test.size, d.classes) == (3, 3, 11)
    assert d.class_names[0] == "hand_clapping" and len(d.class_names) == 11
    for split, user in ((d.train, "user01_led"), (d.test, "user24_lab")):
        x, y = batch(split, range(3))
        assert y.tolist() == [1, 10, 0]
        for image, label in zip(x, y, strict=True):
            want = counted(recordings[user, label + 1], 4, (128, 128))
            np.testing.assert_array_equal(image, want)


def test_validation_of_gestures_is_on_people_who_are_not_trained_on(tmp_path):
    root = tmp_path / "dvs128_gesture"
    gestures(root)
    names, of = [], {}
    for user in range(1, 6):
        for light in ("fluorescent", "led"):  # two recordings of each of five people
            name = f"user{user:02}_{light}"
            rows = [[1000 + user, user, y, 1] for y in range(4)]
            write_aedat3(root / f"{name}.aedat", rows)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"table": "class,start,end\n1,2,3\n"},
            "labels.csv: got 'class,start,end', exp",
        ),
        ({"table": ""}, "labels.csv: got 'nothing', expected class,startTime_usec,"),
        (
            {"table": "class,startTime_usec,endTime_usec\n12,5,9\n"},
            "labels.csv: got class 12 from 5 to 9 in row 2, expected 1 to 11",
        ),
        (
            {"table": "class,startTime_usec,endTime_usec\n1,9,9\n"},
            "got class 1 from 9 to 9 in row 2",
        ),
        (
            {"table": "class,startTime_usec,endTime_usec\n1,a,9\n"},
            "got '1,a,9' in row 2, expected three whole numbers",
        ),
        ({"table": "class,startTime_usec,endTime_usec\n"}, "got no gesture"),
        ({"train": "user02.aedat"}, "trials_to_train.txt: found no user02.aedat here"),
        ({"train": ""}, "trials_to_train.txt: got no recording"),
        ({"train": "user24_lab.aedat"}, "got user24_lab.aedat for training and for te"),
    ],
)
def test_dvs128_gesture_refuses_what_does_not_fit(tmp_path, change, message):
    gestures(tmp_path / "dvs128_gesture", **change)
    with pytest.raises(ValueError, match=message):
        load("dvs128_gesture", tmp_path)


def test_ncaltech101(tmp_path):
    names = [f"class_{i:03}" for i in range(101)]
    for label, name in enumerate(names):
        for i in range(2):
            path = tmp_path / "Caltech101" / name / f"image_{i:04}.bin"
            write_bin(path, some(1000 * i + label, (180, 240), 20))
    d = load("ncaltech101", tmp_path, timesteps=2)
    assert (d.train.size, d.test.size, d.shape) == (182, 20, (2, 240, 240, 2))
    assert d.class_names == tuple(names)
    (x,), (label,) = batch(d.test, [3])
    wanted = [
        counted(some(1000 * i + label, (180, 240), 20), 2, (180, 240)) for i in (0, 1)
    ]
    assert any(np.array_equal(x[:, 30:210], want) for want in wanted) and x.sum() == 20
    assert (
        load("ncaltech101", tmp_path, timesteps=2, size=48, fit="resize").shape[1] == 48
    )
    (tmp_path / "Caltech101" / "more").mkdir()
    with pytest.raises(ValueError, match="expected 101 folders, one for each class"):
        load("ncaltech101", tmp_path)


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


def test_frames_are_made_again_when_a_file_changes(nmnist, capsys):
    before = batch(load("nmnist", nmnist).test, range(10))[0]
    path = nmnist / "nmnist" / "Test" / "3" / "00003.bin"
    write_bin(path, some(999, (34, 34)))  # of the same size
    os.utime(path, (1, 1))
    capsys.readouterr()
    after = batch(load("nmnist", nmnist).test, range(10))[0]
    assert "it was made for another files" in capsys.readouterr().err
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
    assert capsys.readouterr().err.count("making frames") == 2  # once in each place
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


def test_more_than_255_events_in_a_pixel(nmnist):
    rows = [[i, 5, 6, 1] for i in range(1200)]
    write_bin(nmnist / "nmnist" / "Train" / "2" / "00001.bin", rows)
    d = load("nmnist", nmnist)
    x, y = batch(d.train, range(30))
    assert x.max() == 300 and np.asarray(d.train.resident[0]).dtype == np.uint16
    # those before it were moved, those after it were written where they belong
    for i, digit in ((0, 0), (29, 9)):
        rows = some(10 * digit + i % 3, (34, 34))
        np.testing.assert_array_equal(x[i], counted(rows, 4, (34, 34)))
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


def spoil_outside(path):
    write_bin(path, [*some(1, (34, 34)), [90_001, 34, 0, 1]])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_cut, "where it ends, .* the file is cut"),
        (spoil_empty, "got no events"),
        (spoil_outside, "got 1 events outside the sensor"),
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
    read = events.formats.read

    def once_unreachable(path):
        if path.parts[-2:] == ("4", "00001.bin"):
            raise OSError(5, "Input/output error")
        return read(path)

    home = nmnist / "nmnist"
    with monkeypatch.context() as patch:
        patch.setattr(events.formats, "read", once_unreachable)
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


def test_a_gesture_without_events(tmp_path, capsys):
    table = "class,startTime_usec,endTime_usec\n1,5,9\n2,1000000,1090000\n"
    gestures(tmp_path / "dvs128_gesture", table=table)
    d = load("dvs128_gesture", tmp_path, corrupt="skip")
    assert (d.train.size, d.test.size) == (1, 1)
    assert "2 of 4 recordings" in capsys.readouterr().err


# What is not there, or not as it should be.


@pytest.mark.parametrize("name", [n for n in events.KINDS if n != "nmnist_sample"])
def test_missing_data_says_where_it_looked_and_what_to_do(tmp_path, monkeypatch, name):
    with pytest.raises(ValueError) as error:
        load(name, tmp_path)
    assert f"found no folder {name} in {tmp_path}" in str(error.value)
    assert f"a2os2a_jax.data.prepare {name} --data_dir={tmp_path}" in str(error.value)
    monkeypatch.delenv("A2OS2A_DATA", raising=False)
    with pytest.raises(ValueError, match="data.data_dir is unset.*--data_dir=DIR"):
        events.load(name)
    monkeypatch.setenv("A2OS2A_DATA", str(tmp_path))
    with pytest.raises(
        ValueError, match=f"found no folder {name} in {tmp_path}/events"
    ):
        events.load(name)


@pytest.mark.parametrize("name", [n for n in events.KINDS if n != "nmnist_sample"])
def test_an_empty_folder_says_what_it_expected(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name}: got nothing, expected"):
        load(name, tmp_path)


def test_an_empty_class(nmnist):
    for path in (nmnist / "nmnist" / "Train" / "6").iterdir():
        path.unlink()
    with pytest.raises(
        ValueError, match=r"Train/6: found no recording, expected \*.bin"
    ):
        load("nmnist", nmnist)
    (nmnist / "nmnist" / "Train" / "6").rmdir()
    with pytest.raises(
        ValueError, match=r"Train: lacks \['6'\], expected a folder for"
    ):
        load("nmnist", nmnist)


def test_too_few_recordings_to_split(tmp_path):
    (tmp_path / "cifar10_dvs").mkdir()
    for name in CIFAR10[:9]:
        write_aedat2(tmp_path / "cifar10_dvs" / name / "a.aedat", some(1, (128, 128)))
    with pytest.raises(
        ValueError, match="expected a folder for each of airplane, auto"
    ):
        load("cifar10_dvs", tmp_path)


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
        ("nmnist", {"validation": 30}, "hold out: got 30 examples, expected 0 to 29"),
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


def test_the_file_and_the_sample_agree(sample, tmp_path):
    """The same format, by two ways: a recording of the sample, written and read."""
    import tensorflow_datasets as tfds

    row = tfds.data_source("nmnist_sample", split="test", data_dir=sample)[0]
    rows = np.stack([row[name].astype(int) for name in "txyp"], 1).tolist()
    for digit in "0123456789":
        for part in ("Train", "Test"):
            write_bin(tmp_path / "nmnist" / part / digit / "1.bin", rows)
    (file,), _ = batch(load("nmnist", tmp_path).test, [0])
    direct = events.load("nmnist_sample", data_dir=sample, timesteps=4)
    (there,), _ = batch(direct.test, [0])
    np.testing.assert_array_equal(file, there)


def test_the_sample_is_missing(tmp_path):
    with pytest.raises(ValueError, match=f"found no nmnist_sample in {tmp_path}"):
        events.load("nmnist_sample", data_dir=str(tmp_path))
    assert not list(Path(tmp_path).iterdir())
