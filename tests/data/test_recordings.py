import numpy as np
import pytest

from a2os2a_jax.data import recordings
from a2os2a_jax.data.sources import events

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()


def batch(split, index):
    out = split.gather(split.resident, split.fetch(np.asarray(index)))
    return np.asarray(out["image"]), np.asarray(out["label"])


def load(name, root, **options):
    options = {"timesteps": 4} | options
    return events.load(name, data_dir=str(root), **options)


def test_cifar10_dvs(recorded, tmp_path):
    root = tmp_path / "CIFAR10-DVS"  # as people call it
    raw = {}
    for label, name in enumerate(CIFAR10):
        for i in range(10):
            rows = recorded.some(100 * label + i, (128, 128))
            raw[label, i] = rows
            recorded.write_aedat2(root / name / f"cifar10_{name}_{i}.aedat", rows)
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
                    recorded.counted(
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


@pytest.mark.parametrize("inner", ["", "DvsGesture"])
def test_dvs128_gesture(recorded, tmp_path, inner):
    made = recorded.gestures(tmp_path / "dvs128_gesture" / inner)
    d = load("dvs128_gesture", tmp_path)
    assert (d.train.size, d.test.size, d.classes) == (3, 3, 11)
    assert d.class_names[0] == "hand_clapping" and len(d.class_names) == 11
    for split, user in ((d.train, "user01_led"), (d.test, "user24_lab")):
        x, y = batch(split, range(3))
        assert y.tolist() == [1, 10, 0]
        for image, label in zip(x, y, strict=True):
            want = recorded.counted(made[user, label + 1], 4, (128, 128))
            np.testing.assert_array_equal(image, want)


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
def test_dvs128_gesture_refuses_what_does_not_fit(recorded, tmp_path, change, message):
    recorded.gestures(tmp_path / "dvs128_gesture", **change)
    with pytest.raises(ValueError, match=message):
        load("dvs128_gesture", tmp_path)


def test_ncaltech101(recorded, tmp_path):
    names = [f"class_{i:03}" for i in range(101)]
    for label, name in enumerate(names):
        for i in range(2):
            path = tmp_path / "Caltech101" / name / f"image_{i:04}.bin"
            recorded.write_bin(path, recorded.some(1000 * i + label, (180, 240), 20))
    d = load("ncaltech101", tmp_path, timesteps=2)
    assert (d.train.size, d.test.size, d.shape) == (182, 20, (2, 240, 240, 2))
    assert d.class_names == tuple(names)
    (x,), (label,) = batch(d.test, [3])
    wanted = [
        recorded.counted(recorded.some(1000 * i + label, (180, 240), 20), 2, (180, 240))
        for i in (0, 1)
    ]
    assert any(np.array_equal(x[:, 30:210], want) for want in wanted) and x.sum() == 20
    assert (
        load("ncaltech101", tmp_path, timesteps=2, size=48, fit="resize").shape[1] == 48
    )
    (tmp_path / "Caltech101" / "more").mkdir()
    with pytest.raises(ValueError, match="expected 101 folders, one for each class"):
        load("ncaltech101", tmp_path)


# What is not there, or not as it should be.


@pytest.mark.parametrize("name", [n for n in recordings.KINDS if n != "nmnist_sample"])
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


@pytest.mark.parametrize("name", [n for n in recordings.KINDS if n != "nmnist_sample"])
def test_an_empty_folder_says_what_it_expected(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name}: got nothing, expected"):
        load(name, tmp_path)


def test_hidden_files_are_no_recordings(nmnist):
    before = load("nmnist", nmnist).train.size
    folder = nmnist / "nmnist" / "Train" / "6"
    (folder / "._00001.bin").write_bytes(b"left by another system")
    (folder / ".trash").mkdir()
    (folder / ".trash" / "00001.bin").write_bytes(b"too")
    assert load("nmnist", nmnist).train.size == before


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


def test_too_few_recordings_to_split(recorded, tmp_path):
    (tmp_path / "cifar10_dvs").mkdir()
    for name in CIFAR10[:9]:
        recorded.write_aedat2(
            tmp_path / "cifar10_dvs" / name / "a.aedat", recorded.some(1, (128, 128))
        )
    with pytest.raises(
        ValueError, match="expected a folder for each of airplane, auto"
    ):
        load("cifar10_dvs", tmp_path)
