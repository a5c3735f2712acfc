import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from a2os2a_jax import data
from a2os2a_jax.data import cache, catalogue, images
from a2os2a_jax.data.sources import tfds


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch):
    """The user's cache, where labels are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user"


def raw(split):
    """(images, labels) as stored."""
    return split.resident


@pytest.mark.parametrize(
    ("name", "counts", "first"),
    [
        pytest.param(
            *("cifar10", (50_000, 10_000), [7, 8, 4, 4, 6, 5, 2, 9, 6, 6]),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("mnist", (60_000, 10_000), [4, 1, 0, 7, 8, 1, 2, 7, 1, 6]),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("fashion_mnist", (60_000, 10_000), [2, 1, 8, 4, 1, 9, 2, 2, 0, 2]),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_known_sets_are_whole(tfds_dir, name, counts, first):
    d = data.load(name, data_dir=tfds_dir(name))
    assert (d.train.size, d.test.size) == counts and d.classes == 10
    assert raw(d.train)[1][:10].tolist() == first
    if name != "mnist":  # balanced
        for split, count in zip((d.train, d.test), counts, strict=True):
            assert (np.bincount(raw(split)[1]) == count // 10).all()
    x, known = raw(d.train)[0], catalogue.KNOWN[name]
    assert x.dtype == np.uint8 and d.shape == x.shape[1:]
    mean, std = images.statistics(x)
    np.testing.assert_allclose(mean, known.mean, atol=6e-5)
    np.testing.assert_allclose(std, known.std, atol=6e-5)
    batch = d.train.gather(d.train.resident, d.train.fetch(np.arange(256)))
    assert abs(float(batch["image"].mean())) < 0.05
    assert abs(float(batch["image"].std()) - 1) < 0.05


@pytest.mark.slow
def test_the_first_images_of_cifar10_are_those_of_the_reader(tfds_dir):
    d = data.load("cifar10", data_dir=tfds_dir("cifar10"))
    reader = pytest.importorskip("tensorflow_datasets")
    source = reader.data_source("cifar10", split="train", data_dir=tfds_dir("cifar10"))
    for i in (0, 1, 49_999):
        np.testing.assert_array_equal(raw(d.train)[0][i], source[i]["image"])
    assert source[0]["id"] == b"train_16399"
    assert d.class_names[7] == "horse"
    np.testing.assert_allclose(
        images.statistics(raw(d.train)[0])[0],
        [0.49139968, 0.48215841, 0.44653091],  # as published; 93 pictures differ a bit
        atol=2e-6,
    )


@pytest.mark.slow
def test_no_image_of_cifar10_is_in_both_splits(tfds_dir):
    d = data.load("cifar10", data_dir=tfds_dir("cifar10"), validation=5000)
    parts = [
        {image.tobytes() for image in raw(split)[0]}
        for split in (d.train, d.validation, d.test)
    ]
    assert [len(part) for part in parts] == [45_000, 5_000, 10_000]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert (np.bincount(raw(d.validation)[1]) == 500).all()


def test_a_cut_of_cifar100(tfds_dir):
    d = data.load("tfds:cifar100_small", data_dir=tfds_dir("cifar100_small"))
    assert (d.train.size, d.test.size, d.classes) == (3000, 600, 100)
    assert d.mean == catalogue.KNOWN["cifar100"].mean


def test_another_size_is_made_on_the_device(tfds_dir):
    how = dict(data_dir=tfds_dir("cifar100_small"))
    d = data.load("tfds:cifar100_small", size=48, **how)
    assert d.shape == (48, 48, 3) and raw(d.train)[0].shape[1:] == (32, 32, 3)
    batch = d.test.gather(d.test.resident, d.test.fetch(np.arange(2)))
    assert batch["image"].shape == (2, 48, 48, 3)


def test_pictures_of_many_sizes(tfds_dir):
    how = dict(data_dir=tfds_dir("imagenet_sample"), size=32)
    small = data.load("tfds:imagenet_sample", **how)
    assert (small.classes, small.train.size, small.train.stream) == (1000, 800, None)
    assert "one of 5 of train judges" in small.about and small.test.size == 200
    random = data.load("tfds:imagenet_sample", area=0.3, validation=10, **how)
    assert random.train.stream is not None and random.train.resident == ()
    assert random.train.size == 790 and random.validation.size == 10
    a = small.test.gather(small.test.resident, small.test.fetch(np.arange(4)))
    b = random.test.gather((), random.test.fetch(np.arange(4)))
    np.testing.assert_allclose(a["image"], b["image"], atol=1e-6)
    assert a["label"].tolist() == b["label"].tolist()
    (batch,) = random.train.stream(lambda step: np.arange(3), 0, 1)
    assert batch["image"].shape == (3, 32, 32, 3)


def test_large_sets_are_streamed(tfds_dir, monkeypatch):
    monkeypatch.setattr(images, "RESIDENT_GIB", 1e-6)
    d = data.load("tfds:cifar100_small", data_dir=tfds_dir("cifar100_small"))
    monkeypatch.undo()
    whole = data.load("tfds:cifar100_small", data_dir=tfds_dir("cifar100_small"))
    index = np.array([5, 2999])
    a = d.train.gather((), d.train.fetch(index))
    b = whole.train.gather(whole.train.resident, whole.train.fetch(index))
    np.testing.assert_allclose(a["image"], b["image"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(classes=10), "data.classes: got 10, cifar100_small has 100"),
        (dict(area=0.5), "data.area: got 0.5"),
        (dict(corrupt="some"), "data.corrupt: got 'some'"),
        (dict(validation=3000), "got 3000 examples"),
        (dict(channels=1), "data.channels: got 1, tfds:cifar100_small takes: size"),
    ],
)
def test_arguments_that_do_not_fit(tfds_dir, options, message):
    with pytest.raises(ValueError, match=message):
        data.load("tfds:cifar100_small", data_dir=tfds_dir("cifar100_small"), **options)


def test_pictures_of_many_sizes_need_one(tfds_dir):
    with pytest.raises(ValueError, match="data.size: got None.*of many sizes"):
        data.load("tfds:imagenet_sample", data_dir=tfds_dir("imagenet_sample"))


def test_recordings_are_not_pictures(tfds_dir):
    with pytest.raises(ValueError, match="nmnist_sample: got the features.*a picture"):
        data.load("tfds:nmnist_sample", data_dir=tfds_dir("nmnist_sample"))


# ---- sets made here


def drawn(encode, count, first=0):
    """Rows of a set: picture i is of grey i, its label i % 4."""
    greys = range(first, first + count)
    return [(encode(np.full((4, 4, 3), i, np.uint8)), i % 4) for i in greys]


def seen(split):
    """[(grey, label)] of what evaluation counts, in order."""
    if split.resident:
        images_, labels = split.resident
    else:
        batch = split.fetch(np.arange(split.size))
        images_, labels = batch["image"], batch["label"]
    greys = images_.reshape(len(images_), -1)[:, 0].tolist()
    pairs = zip(greys, labels.tolist(), strict=True)
    return [pair for pair in pairs if pair[1] >= 0]


def both(monkeypatch, *args, **options):
    """The same set resident, and streamed."""
    resident = data.load(*args, **options)
    with monkeypatch.context() as patch:
        patch.setattr(images, "RESIDENT_GIB", 0)
        streamed = data.load(*args, **options)
    assert resident.train.resident and not streamed.train.resident
    return resident, streamed


def test_a_set_with_one_split_is_not_judged_by_what_it_learns(
    tiny_tfds, encode, monkeypatch
):
    root = tiny_tfds("one", {"train": drawn(encode, 40)})
    for d in both(monkeypatch, "tfds:one", data_dir=root, validation=8):
        parts = [seen(split) for split in (d.train, d.test, d.validation)]
        assert [len(part) for part in parts] == [24, 8, 8]
        assert sorted(sum(parts, [])) == [(i, i % 4) for i in range(40)]
        for part in parts:  # stratified
            labels = np.bincount([label for _, label in part])
            assert (labels == len(part) // 4).all()
        assert parts[1] == [(g, g % 4) for g in (1, 3, 17, 22, 24, 26, 28, 39)]
        assert d.about.endswith("; it has no test split, so one of 5 of train judges")
    root = tiny_tfds("few", {"train": drawn(encode, 4)})
    with pytest.raises(ValueError, match="few: got 4 pictures, expected at least 5"):
        data.load("tfds:few", data_dir=root)


def test_the_split_without_labels_does_not_judge_imagenet(tiny_tfds, encode):
    splits = {
        "train": drawn(encode, 8),
        "test": [(image, -1) for image, _ in drawn(encode, 4, 100)],
        "validation": drawn(encode, 6, 50),
    }
    root = tiny_tfds("imagenet2012", splits)
    d = data.load("imagenet2012", data_dir=root)
    assert seen(d.test) == [(i, i % 4) for i in range(50, 56)]
    root = tiny_tfds("other", splits)
    with pytest.raises(images.Corrupt, match="0 of other test: got label -1"):
        data.load("tfds:other", data_dir=root)
    del splits["validation"]
    tiny_tfds("imagenet2012", splits, version="1.0.1")
    with pytest.raises(ValueError, match="splits train, test, expected validation"):
        data.load("imagenet2012", data_dir=root)
    root = tiny_tfds("judged", {"test": drawn(encode, 8)})
    with pytest.raises(ValueError, match="splits test, expected train"):
        data.load("tfds:judged", data_dir=root)


def test_what_cannot_be_decoded_moves_no_other_example(tiny_tfds, encode, monkeypatch):
    rows = drawn(encode, 40)
    root = tiny_tfds("whole", {"train": rows})
    how = dict(validation=8, data_dir=root)
    whole = data.load("tfds:whole", **how)
    parts = ("train", "test", "validation")
    lost = [seen(whole.split(part))[2][0] for part in parts]
    for i in lost:
        rows[i] = (rows[i][0][:40], rows[i][1])
    tiny_tfds("broken", {"train": rows})
    resident, streamed = both(monkeypatch, "tfds:broken", corrupt="skip", **how)
    for part in parts:
        left = [pair for pair in seen(whole.split(part)) if pair[0] not in lost]
        assert seen(resident.split(part)) == left
        if part != "train":  # there the next one takes its place
            assert seen(streamed.split(part)) == left
    with pytest.raises(
        images.Corrupt, match=f"record {min(lost)} of broken train: not"
    ):
        data.load("tfds:broken", **how)


def test_records_without_a_label_are_held_out_the_same_way(
    tiny_tfds, encode, monkeypatch, capsys
):
    rows = drawn(encode, 40)
    lost = (5, 6, 9, 13, 17)
    for i in lost:
        rows[i] = b"\xff\xff"
    root = tiny_tfds("broken", {"train": rows})
    how = dict(data_dir=root, validation=8)
    resident, streamed = both(monkeypatch, "tfds:broken", corrupt="skip", **how)
    for part in ("test", "validation"):
        assert seen(resident.split(part)) == seen(streamed.split(part))
        assert len(seen(resident.split(part))) <= 8
    pairs = [
        pair
        for part in ("train", "test", "validation")
        for pair in seen(resident.split(part))
    ]
    assert sorted(pairs) == [(i, i % 4) for i in range(40) if i not in lost]
    assert "record 17 of broken train: cannot be read: " in capsys.readouterr().err


def test_why_a_label_cannot_be_read_is_kept(
    tiny_tfds, encode, monkeypatch, user, capsys
):
    monkeypatch.setattr(images, "RESIDENT_GIB", 0)
    rows = drawn(encode, 40)
    rows[5], rows[11] = b"\xff\xff", b""  # no record, and one without features
    root = tiny_tfds("broken", {"train": rows})
    for _ in range(2):  # read, and kept
        tfds._labels.cache_clear()
        data.load("tfds:broken", data_dir=root, corrupt="skip")
        said = capsys.readouterr().err.splitlines()
        (folder,) = (user / "a2os2a_jax").glob("broken-*/labels-train")
        *_, first, second = said
        assert re.fullmatch(
            f"broken train: left out record 5 of broken train: cannot be read: .*corr"
            f"upt.*; to read it again delete {re.escape(str(folder))}",
            first,
        )
        assert "record 11 of broken train: cannot be read: has no label; to" in second
    with pytest.raises(
        images.Corrupt, match=f"record 5 of.*: .*; to.* delete {folder}"
    ):
        data.load("tfds:broken", data_dir=root)
    shutil.rmtree(user)
    with pytest.raises(
        images.Corrupt, match="record .* cannot be read: [^;]*; data.cor"
    ):
        data.load("tfds:broken", data_dir=root)
    assert not list(user.rglob("labels*"))


def made_of_two_files(tiny_tfds, encode):
    """(data_dir, the training file, what is in it) of a set with a file a split."""
    rows = drawn(encode, 40)
    root = tiny_tfds("made", {"train": rows, "test": rows})
    (file,) = (Path(root) / "made" / "1.0.0").glob("*train.array_record*")
    return root, file, file.read_bytes()


@pytest.mark.parametrize("corrupt", ["error", "skip"])
@pytest.mark.parametrize("gib", [0.0, 1.0])
def test_an_error_of_the_system_is_no_unreadable_record(
    tiny_tfds, encode, user, monkeypatch, corrupt, gib
):
    root, file, content = made_of_two_files(tiny_tfds, encode)
    how = dict(data_dir=root, validation=8, corrupt=corrupt, resident_gib=gib)
    file.unlink()
    with pytest.raises(
        OSError, match=rf"{re.escape(str(file))}: open\(\) failed: No such"
    ):
        data.load("tfds:made", **how)
    file.mkdir()
    with pytest.raises(
        OSError, match=rf"{re.escape(str(file))}: read\(\) failed: Is a dir"
    ):
        data.load("tfds:made", **how)
    file.rmdir()
    file.write_bytes(content)
    record = tfds.Encoded.source.func

    def once_unreachable(self):
        source = record(self)

        class Source:
            def __len__(self):
                return len(source)

            def __getitem__(self, index):
                if index == 7:
                    raise OSError(5, "Input/output error")
                return source[index]

        return Source()

    with monkeypatch.context() as patch:
        patch.setattr(tfds.Encoded, "source", property(once_unreachable))
        with pytest.raises(
            OSError, match="record 7 of made train: .*Input/output error"
        ):
            data.load("tfds:made", **how)
    assert not list(user.rglob("labels*"))
    assert len(seen(data.load("tfds:made", **how).validation)) == 8


def test_labels_are_read_once(tiny_tfds, encode, monkeypatch, user, capsys):
    monkeypatch.setattr(images, "RESIDENT_GIB", 0)
    rows = drawn(encode, 40)
    root = tiny_tfds("made", {"train": rows, "test": rows})

    def load():
        tfds._labels.cache_clear()  # as in a new process
        d = data.load("tfds:made", data_dir=root, validation=8)
        return seen(d.validation), capsys.readouterr().err

    first, said = load()
    (folder,) = (user / "a2os2a_jax").glob("made-*/labels-train")
    assert f"reading 40 labels, {folder}" in said
    assert load() == (first, "")
    (file,) = (Path(root) / "made" / "1.0.0").glob("*train.array_record*")
    os.utime(file, ns=(0, 0))  # written anew
    again, said = load()
    assert again == first and "reading 40 labels" in said
    assert said.count("it was made of other files") == 1
    monkeypatch.setattr(cache, "writable", lambda folder: False)
    shutil.rmtree(user)
    again, said = load()
    assert again == first and not user.exists()
    assert "reading 40 labels, which can be kept nowhere" in said
    data.load("tfds:made", data_dir=root)  # nothing is held out: nothing is read
    assert capsys.readouterr().err == ""


def test_records_travel_as_a_path(tiny_tfds, encode):
    root = tiny_tfds("made", {"train": drawn(encode, 8)})
    records = tfds.Encoded("made", "train", os.path.join(root, "made", "1.0.0"))
    assert records[3].label == 3  # which opens the files
    content = pickle.dumps(records)
    assert len(content) < 500 and pickle.loads(content)[3] == records[3]


@pytest.mark.slow  # processes take seconds to start
def test_processes_read_what_threads_read(tiny_tfds, encode, monkeypatch):
    monkeypatch.setattr(images, "RESIDENT_GIB", 0)
    root = tiny_tfds("made", {"train": drawn(encode, 8), "test": drawn(encode, 4)})
    runs = []
    for workers in (0, 2):
        d = data.load("tfds:made", data_dir=root, workers=workers)
        assert len(seen(d.test)) == 4  # the files are open
        rows = d.train.stream(lambda step: np.array([step, 3]), 0, 3)
        runs.append([(r["image"].tolist(), r["label"].tolist()) for r in rows])
    assert runs[0] == runs[1] and runs[0][2][1] == [2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(shape=(4, 4, 4)), "odd: got 4 channels, expected 1 or 3"),
        (dict(shape=(None, None, 2)), "odd: got 2 channels, expected 1 or 3"),
        (dict(dtype="uint16"), "odd: got pictures of uint16, expected uint8"),
    ],
)
def test_pictures_of_other_kinds_are_refused_at_once(
    tiny_tfds, encode, options, message
):
    root = tiny_tfds("odd", {"train": drawn(encode, 8)}, **options)
    with pytest.raises(ValueError, match=message):
        data.load("tfds:odd", data_dir=root, size=4)


def test_a_grey_picture_in_a_coloured_set_is_found(tiny_tfds, encode):
    rows = drawn(encode, 8)
    rows[2] = (encode(np.zeros((4, 4, 1), np.uint8)), 2)
    root = tiny_tfds("made", {"train": rows})
    with pytest.raises(
        images.Corrupt, match="record 2 of made train: got 1 channels, expected 3"
    ):
        data.load("tfds:made", data_dir=root)


def test_how_a_set_is_kept_moves_no_pixel(tiny_tfds, encode):
    def grey(name):
        rows = [(encode(np.full((4, 4, 1), i, np.uint8)), i % 4) for i in range(8)]
        return tiny_tfds(name, {"train": rows, "test": rows}, shape=(4, 4, 1))

    root = grey("fashion_mnist")
    for gib in (1.0, 0.0):
        d = data.load("fashion_mnist", data_dir=root, resident_gib=gib)
        assert bool(d.train.resident) is bool(gib)
        assert (d.mean, d.std) == ((0.2860,), (0.3530,))
    d = data.load("tfds:unknown", data_dir=grey("unknown"), resident_gib=0.0)
    np.testing.assert_allclose([d.mean, d.std], [[0.449], [0.226]], atol=1e-9)
    rows = drawn(encode, 8)
    root = tiny_tfds("coloured", {"train": rows, "test": rows})
    d = data.load("tfds:coloured", data_dir=root, resident_gib=0.0)
    assert (d.mean, d.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# ---- what is not there


def test_a_missing_set_says_where_it_looked_and_how_to_make_it(tmp_path):
    with pytest.raises(ValueError) as error:
        data.load("cifar10", data_dir=str(tmp_path))
    text = str(error.value)
    assert f"found no cifar10 in {tmp_path}" in text and "\n" not in text
    assert f"data.prepare cifar10 --data_dir={tmp_path}" in text


def test_a_set_with_configs_says_which_there_are(tiny_tfds, encode):
    for config in ("rgb", "all"):
        splits = {"train": drawn(encode, 8)}
        root = tiny_tfds("sat", splits, config=config, version="2.0.0")
    assert tfds.open_builder("sat/rgb", root).info.full_name == "sat/rgb/2.0.0"
    with pytest.raises(
        ValueError, match="got sat, .* in .*: sat/all, sat/rgb$"
    ) as error:
        tfds.open_builder("sat", root)
    assert not isinstance(error.value, tfds.Missing)  # nothing is to be made
    with pytest.raises(tfds.Missing, match="data.prepare sat/other --data_dir="):
        tfds.open_builder("sat/other", root)


def test_where_sets_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("A2OS2A_DATA", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", "/theirs")
    assert tfds.folder(None) == Path("/theirs")
    (tmp_path / "tfds").mkdir()
    assert tfds.folder(None) == tmp_path / "tfds"
    assert tfds.folder("/given") == Path("/given")
    monkeypatch.delenv("A2OS2A_DATA")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert tfds.folder(None) == Path.home() / "tensorflow_datasets"


# ---- what is broken, and what changed


def spoil(name, content):
    def spoilt(folder):
        (path,) = folder.glob(name)
        old = path.read_bytes()
        path.write_bytes(content(old) if callable(content) else content)
        return path

    return spoilt


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (spoil("dataset_info.json", lambda old: old[:50]), "got no JSON, "),
        (spoil("dataset_info.json", b""), "got no JSON, "),
        (spoil("dataset_info.json", b"\xff\xfe"), "got no JSON, 'utf-8' codec"),
        (spoil("dataset_info.json", b"[1]"), "got a list, expected a JSON object"),
        (spoil("features.json", lambda old: old[:50]), "got no JSON, "),
        (spoil("features.json", b"<html>"), "got no JSON, "),
        (spoil("*train*", lambda old: old[: len(old) // 2]), "it is cut or damaged"),
        (spoil("*train*", lambda old: old[:-1]), "it is cut or damaged"),
        (spoil("*train*", b""), "got 0 bytes .* expected 40 records"),
        (spoil("*train*", b"<html>" * 2**14), "it is cut or damaged"),
    ],
)
@pytest.mark.parametrize("corrupt", ["error", "skip"])
def test_a_broken_file_is_named_once(tiny_tfds, encode, user, spoilt, message, corrupt):
    root = tiny_tfds("made", {"train": drawn(encode, 40), "test": drawn(encode, 8)})
    path = spoilt(Path(root) / "made" / "1.0.0")
    how = dict(data_dir=root, corrupt=corrupt, validation=8)
    for gib in (1.0, 0.0):
        with pytest.raises(ValueError) as error:
            data.load("tfds:made", resident_gib=gib, **how)
        said = str(error.value)
        assert re.match(f"{re.escape(str(path))}: .*{message}", said)
        assert "\n" not in said and "record 0" not in said
        assert not isinstance(error.value, images.Corrupt)
    assert not list(user.rglob("labels*"))


def test_what_tensorflow_datasets_cannot_open_is_named(tiny_tfds, encode):
    root = tiny_tfds("made", {"train": drawn(encode, 40)})
    folder = Path(root) / "made" / "1.0.0"
    (folder / "features.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=f'{folder}: tensorf.* no field named "a"'):
        data.load("tfds:made", data_dir=root)
    (folder / "features.json").unlink()
    with pytest.raises(OSError, match="No such file.*features.json"):
        data.load("tfds:made", data_dir=root)


def test_names_of_classes_that_are_cut_are_found(tiny_tfds, encode):
    root = tiny_tfds("made", {"train": drawn(encode, 40)})
    labels = Path(root) / "made" / "1.0.0" / "label.labels.txt"
    labels.write_text("a\nb\nc\nd\n")
    assert data.load("tfds:made", data_dir=root).class_names == tuple("abcd")
    labels.write_text("a\nb\nc")
    with pytest.raises(ValueError, match="made: got 3 names in label.labels.txt, exp"):
        data.load("tfds:made", data_dir=root)


def test_a_file_of_another_set_is_found(tiny_tfds, encode):
    root = tiny_tfds("made", {"train": drawn(encode, 40), "test": drawn(encode, 8)})
    train, test = (next(Path(root).rglob(f"*{k}.arr*")) for k in ("train", "test"))
    shutil.copyfile(test, train)
    with pytest.raises(ValueError, match=f"{train}: got 8 records, expected 40 by"):
        data.load("tfds:made", data_dir=root)
    test.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{train}: .*; 1 others are broken, too"):
        data.load("tfds:made", data_dir=root)


@pytest.mark.parametrize("gib", [1.0, 0.0])
def test_a_set_that_is_written_anew_is_read_anew(tiny_tfds, encode, gib):
    seen_, stamps = [], []
    for first in (0, 100, 100):
        shutil.rmtree(Path(tiny_tfds.folder) / "made", ignore_errors=True)
        root = tiny_tfds("made", {"train": drawn(encode, 40, first)})
        d = data.load("tfds:made", data_dir=root, validation=8, resident_gib=gib)
        seen_.append([seen(split) for split in (d.test, d.validation)])
        stamps.append(d.stamp)
    assert [part[0][0][0] >= 100 for part in seen_] == [False, True, True]
    assert seen_[1] == seen_[2]
    assert stamps[0] != stamps[1] == stamps[2]  # times do not matter
    moved = Path(root).parent / "moved"
    Path(root).rename(moved)
    assert data.load("tfds:made", data_dir=str(moved)).stamp == stamps[1]


def test_labels_that_change_are_read_anew(tiny_tfds, encode, user):
    labels = []
    for shift in (0, 1):
        shutil.rmtree(Path(tiny_tfds.folder) / "made", ignore_errors=True)
        rows = [(image, (y + shift) % 4) for image, y in drawn(encode, 40)]
        root = tiny_tfds("made", {"train": rows})
        d = data.load("tfds:made", data_dir=root, validation=8, resident_gib=0)
        labels.append([(y - shift) % 4 == grey % 4 for grey, y in seen(d.test)])
    assert labels == [[True] * 8] * 2


def test_no_caller_can_write_into_what_another_reads(tiny_tfds, encode):
    root = tiny_tfds("made", {"train": drawn(encode, 40), "test": drawn(encode, 8)})
    first, second = (data.load("tfds:made", data_dir=root) for _ in range(2))
    for a, b in zip(first.train.resident, second.train.resident, strict=True):
        assert not np.shares_memory(a, b) or not a.flags.writeable


def copy(source, target):
    """A tree whose files may be written."""
    for folder, _, files in os.walk(source):
        made = target / Path(folder).relative_to(source)
        made.mkdir(parents=True)
        for file in files:
            shutil.copyfile(Path(folder) / file, made / file)


def test_the_newest_version_is_taken_and_its_format_looked_at(tfds_dir, tmp_path):
    source = Path(tfds_dir("cifar100_small")) / "cifar100_small" / "1.0.0"
    copy(source, tmp_path / "cifar100_small" / "1.0.0")
    copy(source, tmp_path / "cifar100_small" / "1.0.0.incomplete")  # of a crash
    copy(source, tmp_path / "cifar100_small" / "1.10.0")
    copy(source, tmp_path / "cifar100_small" / "1.9.0")
    builder = tfds.open_builder("cifar100_small", str(tmp_path))
    assert Path(builder.data_dir).name == "1.10.0"
    path = tmp_path / "cifar100_small" / "1.10.0" / "dataset_info.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"fileFormat": "tfrecord"}))
    with pytest.raises(
        ValueError, match="in another format, tfrecord; expected array_rec"
    ):
        tfds.open_builder("cifar100_small", str(tmp_path))


def test_a_file_cut_short_is_an_error(tfds_dir, tmp_path):
    source = Path(tfds_dir("cifar100_small")) / "cifar100_small"
    copy(source, tmp_path / "cifar100_small")
    (path,) = (tmp_path / "cifar100_small" / "1.0.0").glob("*test*record*")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"^{path}: got .* expected 600 records; it"):
        data.load("tfds:cifar100_small", data_dir=str(tmp_path))
