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
    more = tmp_path / "Caltech101" / "more"
    recorded.write_bin(more / "image_0001.bin", recorded.some(1, (180, 240), 20))
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


# Litter, capitals, links.


LITTER = [
    *("._00001.bin", "__MACOSX/._00001.bin", "__MACOSX/00001.bin", ".trash/00001.bin"),
    *("@eaDir/00001.bin", "#recycle/00001.bin", ".DS_Store", "Thumbs.db"),
    *("train.log", "slurm-1.out", "00001.bin.part", "logs/a.txt", "README"),
]


@pytest.mark.parametrize("litter", LITTER)
def test_litter_is_passed_over_and_counted(nmnist, capsys, litter):
    root = nmnist / "nmnist"
    whole = load("nmnist", nmnist)
    places = [root, root / "Train", root / "Test" / "6"]
    for folder in places:
        path = folder / litter
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"left by another system")
    capsys.readouterr()
    left = load("nmnist", nmnist)
    said = capsys.readouterr().err
    assert "nmnist: passed over 3 files or folders that are no recordings: " in said
    assert f"Train/{litter.partition('/')[0]}" in said and "made of other" not in said
    assert left.stamp == whole.stamp and left.classes == 10
    for a, b in ((left.train, whole.train), (left.test, whole.test)):
        for have, want in zip(a.resident, b.resident, strict=True):
            np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("litter", LITTER)
def test_litter_is_no_class(recorded, tmp_path, capsys, litter):
    names = [f"class_{i:03}" for i in range(101)]
    for label, name in enumerate(names):
        path = tmp_path / "Caltech101" / "Caltech101" / name / "image_0001.bin"
        recorded.write_bin(path, recorded.some(label, (180, 240), 20))
    for folder in (path.parents[1], path.parents[2]):  # beside the classes, and above
        (folder / litter).parent.mkdir(exist_ok=True)
        (folder / litter).write_bytes(b"left by another system")
    if litter.startswith("logs"):  # two folders, of which either may be the set
        (path.parents[2] / litter).unlink()
        (path.parents[2] / litter).parent.rmdir()
    listing = recordings.listed("ncaltech101", tmp_path / "Caltech101")
    assert listing.class_names == tuple(names) and len(listing.labels) == 101
    assert "ncaltech101: passed over " in capsys.readouterr().err


def test_litter_beside_gestures(recorded, tmp_path, capsys):
    recorded.gestures(tmp_path / "dvs128_gesture" / "DvsGesture")
    for name in ("__MACOSX", "@eaDir", "DvsGesture/__MACOSX"):
        (tmp_path / "dvs128_gesture" / name).mkdir()
    d = load("dvs128_gesture", tmp_path)
    assert (d.train.size, d.test.size) == (3, 3)
    said = capsys.readouterr().err
    assert "passed over 3 files or folders that are no recordings: @eaDir, __M" in said


def test_a_clean_set_passes_nothing_over(nmnist, capsys):
    for _ in range(2):  # the second time there are frames beside the recordings
        load("nmnist", nmnist)
    assert "passed over" not in capsys.readouterr().err


def test_capitals_of_files_do_not_matter(recorded, nmnist, tmp_path):
    want = load("nmnist", nmnist)
    for path in (nmnist / "nmnist").rglob("*.bin"):
        path.rename(path.with_suffix(".BIN"))
    got = load("nmnist", nmnist)
    for a, b in ((got.train, want.train), (got.test, want.test)):
        for have, wanted in zip(a.resident, b.resident, strict=True):
            np.testing.assert_array_equal(have, wanted)
    for name in CIFAR10:
        path = tmp_path / "cifar10_dvs" / name.title() / "a.AEDAT"
        recorded.write_aedat2(path, recorded.some(1, (128, 128)))
    assert load("cifar10_dvs", tmp_path).train.size == 9
    recorded.gestures(tmp_path / "dvs128_gesture")
    for path in (tmp_path / "dvs128_gesture").iterdir():
        path.rename(path.with_name(path.name.upper()))
    assert load("dvs128_gesture", tmp_path).train.size == 3


def test_links_are_followed(nmnist, tmp_path):
    want = load("nmnist", nmnist).train
    folder = nmnist / "nmnist" / "Train" / "6"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert load("nmnist", nmnist).train.size == want.size
    folder.unlink()
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "linked").symlink_to(tmp_path / "elsewhere")
    assert load("nmnist", nmnist).train.size == want.size
    (folder / "inner" / "around").symlink_to(folder)
    with pytest.raises(
        ValueError, match="inner/around: got a link to a folder that it"
    ):
        load("nmnist", nmnist)
    (folder / "inner" / "around").unlink()
    (folder / "gone.bin").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="gone.bin"):
        load("nmnist", nmnist)


def test_the_folder_of_the_set_may_be_named_itself(nmnist, monkeypatch):
    assert load("nmnist", nmnist / "nmnist").train.size == 30
    monkeypatch.chdir(nmnist / "nmnist")
    assert load("nmnist", ".").train.size == 30
    with pytest.raises(ValueError, match="found no folder cifar10_dvs in "):
        load("cifar10_dvs", nmnist / "nmnist")


def test_a_part_to_be_judged_on_may_lack_a_class(nmnist, capsys):
    for path in (nmnist / "nmnist" / "Test" / "6").iterdir():
        path.unlink()
    for path in (nmnist / "nmnist" / "Test" / "8").iterdir():
        path.unlink()
    path.parent.rmdir()
    d = load("nmnist", nmnist)
    assert (d.train.size, d.test.size, d.classes) == (30, 8, 10)
    said = capsys.readouterr().err
    assert f"nmnist: {nmnist}/nmnist/Test has no recording of 6, 8\n" in said
    for path in (nmnist / "nmnist" / "Test").rglob("*.bin"):
        path.unlink()
    with pytest.raises(ValueError, match="Test: found no recording, expected *"):
        load("nmnist", nmnist)


# SpikingJelly's folders.


def write_npz(path, rows):
    """As SpikingJelly does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    t, x, y, p = np.array(rows).T
    np.savez(path, t=t, x=x, y=y, p=p)


def spikingjelly(name, root, recorded):
    """The folders {download, extract, events_np, frames_...}."""
    extract, made = root / "extract", root / "events_np"
    if name == "cifar10_dvs":
        for label, each in enumerate(CIFAR10):
            for i in range(12):
                rows = recorded.some(100 * label + i, (128, 128))
                recorded.write_aedat2(
                    extract / each / f"cifar10_{each}_{i}.aedat", rows
                )
                rows = [(t, 127 - y, 127 - x, 1 - p) for t, x, y, p in rows]
                write_npz(made / each / f"cifar10_{each}_{i}.npz", rows)
        return
    if name == "dvs128_gesture":
        cut = recorded.gestures(extract / "DvsGesture")
        for part in ("train", "test"):
            for label in range(11):
                (made / part / str(label)).mkdir(parents=True)
        for (user, gesture), rows in cut.items():
            part = "train" if user == "user01_led" else "test"
            write_npz(made / part / str(gesture - 1) / f"{user}_0.npz", rows)
        return
    sensor = (34, 34) if name == "nmnist" else (180, 240)
    folders = (
        [f"{part}/{digit}" for part in ("Train", "Test") for digit in range(10)]
        if name == "nmnist"
        else [f"Caltech101/class_{i:03}" for i in range(101)]
    )
    for label, folder in enumerate(folders):
        rows = recorded.some(label, sensor)
        recorded.write_bin(extract / folder / "image_0001.bin", rows)
        folder = folder.removeprefix("Caltech101/").lower()
        write_npz(made / folder / "image_0001.npz", rows)


NAMES = {  # as SpikingJelly's classes and its users call the folder
    "cifar10_dvs": "CIFAR10DVS",
    "dvs128_gesture": "DVS128Gesture",
    "nmnist": "N_MNIST",
    "ncaltech101": "NCaltech101",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_of_spikingjelly(recorded, tmp_path, capsys, name):
    root = tmp_path / NAMES[name]
    spikingjelly(name, root, recorded)
    (root / "download").mkdir()
    (root / "frames_number_4_split_by_number" / "train" / "0").mkdir(parents=True)
    found = []
    for gone in ("nothing", "events_np", "extract"):
        if gone == "extract":
            (root / "keep").rename(root / "events_np")
        if (root / gone).is_dir():
            (root / gone).rename(root / "keep" if gone == "events_np" else root / "x")
        d = load(name, tmp_path, size=128 if "101" in name else None, fit="crop")
        found.append([split.resident for split in (d.train, d.test)])
        assert d.stamp
    assert "left out" not in capsys.readouterr().err
    for other in found[1:]:
        for (images, labels), (x, y) in zip(other, found[0], strict=True):
            order, wanted = (
                np.lexsort([*a.reshape(len(a), -1)[:, :999].T, b])
                for a, b in ((images, labels), (x, y))
            )
            if name != "dvs128_gesture":  # there they lie in the order of the classes
                assert labels.tolist() == y.tolist()
                order = wanted = np.arange(len(y))
            np.testing.assert_array_equal(images[order], x[wanted])
            np.testing.assert_array_equal(labels[order], y[wanted])


def test_people_of_gestures_that_spikingjelly_cut_out(recorded, tmp_path):
    made = tmp_path / "DVS128Gesture" / "events_np"
    for user in (1, 2, 3, 24):
        part = "test" if user == 24 else "train"
        for label in range(11):
            for i in range(2):
                rows = [[1000 + label, user, y, 1] for y in range(4)]
                path = made / part / str(label) / f"user{user:02}_led_{i}.npz"
                write_npz(path, rows)
    d = load("dvs128_gesture", tmp_path, validation=1)
    parts = [
        {int(x.sum((0, 1, 3)).argmax()) for x in split.resident[0]}
        for split in (d.train, d.validation, d.test)
    ]
    assert [len(part) for part in parts] == [2, 1, 1] and parts[2] == {24}
    assert not parts[0] & parts[1] and d.validation.size == 22
    assert d.class_names[1] == "right_hand_wave"
    assert np.bincount(d.train.resident[1]).tolist() == [4] * 11


def test_markers_that_spikingjelly_kept_are_no_events(recorded, tmp_path):
    rows = [[8000, 1, 1, 1], [8190, 2, 2, 0], [0, 0, 240, 0], [5, 3, 3, 1]]
    for folder in ("extract", "events_np"):
        for part in ("Train", "Test"):
            for digit in range(10):
                path = tmp_path / folder / "nmnist" / folder / part / str(digit) / "a"
                if folder == "extract":
                    recorded.write_bin(path.with_suffix(".bin"), rows)
                else:
                    write_npz(path.with_suffix(".npz"), rows)
    a, b = (
        load("nmnist", tmp_path / folder, timesteps=3).test.resident[0]
        for folder in ("extract", "events_np")
    )
    np.testing.assert_array_equal(a, b)
    assert a[0, 2, 3, 3, 1] == 1 and a[0].sum() == 3


def test_files_of_two_kinds_are_taken_once(nmnist, recorded, capsys):
    for path in (nmnist / "nmnist").rglob("*.bin"):
        write_npz(path.with_suffix(".npz"), recorded.some(1, (34, 34)))
    assert load("nmnist", nmnist).train.size == 30
    assert "passed over 40 files or folders" in capsys.readouterr().err


def test_an_npz_without_events_is_told(nmnist):
    for path in (nmnist / "nmnist").rglob("*.bin"):
        np.savez(path.with_suffix(".npz"), frames=np.zeros((4, 2, 34, 34)))
        path.unlink()
    with pytest.raises(ValueError, match="00000.npz: got the arrays frames, expected"):
        load("nmnist", nmnist)


def test_what_is_made_for_tests_is_the_same_in_every_process(recorded, tmp_path):
    made = recorded.gestures(tmp_path / "made")
    assert made["user01_led", 2][0] == [1000825, 72, 8, 1]


def test_an_empty_class(nmnist):
    for path in (nmnist / "nmnist" / "Train" / "6").iterdir():
        path.unlink()
    with pytest.raises(
        ValueError, match=r"Train/6: found no recording, expected \*.bin or \*.npz"
    ):
        load("nmnist", nmnist)
    (nmnist / "nmnist" / "Train" / "6").rmdir()
    with pytest.raises(ValueError, match="Train: lacks 6, expected a folder for it"):
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
