import json
import os
import shutil

import numpy as np
import pytest

from a2os2a_jax import data
from a2os2a_jax.data import images
from a2os2a_jax.data.sources import folder

SIDES = ((12, 10), (9, 20), (16, 16))


@pytest.fixture
def tree(tmp_path, encode):
    """tree(under, {class: count}) writes pictures, each of one grey."""

    def make(under, classes):
        for label, (name, count) in enumerate(classes.items()):
            (tmp_path / under / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((*SIDES[i % 3], 3), 60 * label + i, np.uint8)
                kind = ("JPEG", "PNG")[i % 2]
                file = tmp_path / under / name / f"{i:03}.{kind.lower()}"
                file.write_bytes(encode(pixels, kind, **{}))
        return tmp_path

    return make


def grey(split):
    return split.resident[0].reshape(split.size, -1).mean(1).round().astype(int)


def test_one_tree_is_split_by_class(tree):
    root = tree("", {"bird": 20, "ant": 10})
    d = data.load(f"folder:{root}", size=8)
    assert d.class_names == ("ant", "bird") and d.shape == (8, 8, 3)
    assert (d.train.size, d.test.size) == (24, 6)
    assert np.bincount(d.test.resident[1]).tolist() == [2, 4]
    seen = np.sort(np.concatenate([grey(d.train), grey(d.test)]))
    np.testing.assert_array_equal(seen, [*range(20), *range(60, 70)])
    for split in (d.train, d.test):  # bird was made first, with greys below 60
        np.testing.assert_array_equal(split.resident[1] == 1, grey(split) < 60)
    again = data.load(f"folder:{root}", size=8)
    np.testing.assert_array_equal(grey(again.test), grey(d.test))


@pytest.mark.parametrize("judge", ["test", "val"])
def test_two_trees(tree, judge):
    root = tree("train", {"a": 6, "b": 6})
    tree(judge, {"a": 2, "b": 1})
    d = data.load("folder:.", size=8, data_dir=str(root), validation=4, channels=1)
    assert [d.train.size, d.validation.size, d.test.size] == [8, 4, 3]
    assert d.shape == (8, 8, 1) and d.test.resident[1].tolist() == [0, 0, 1]


def test_random_parts_are_streamed(tree):
    root = tree("", {"a": 10, "b": 10})
    d = data.load(f"folder:{root}", size=8, area=0.2, seed=3)
    (batch,) = d.train.stream(lambda step: np.array([0, 15]), 4, 5)
    assert batch["image"].shape == (2, 8, 8, 3) and batch["label"].tolist() == [0, 1]
    out = d.test.gather((), d.test.fetch(np.arange(4)))
    whole = data.load(f"folder:{root}", size=8)
    ref = whole.test.gather(whole.test.resident, whole.test.fetch(np.arange(4)))

    def pixels(batch, d):  # the two have statistics of their own
        mean, std = (np.reshape(np.float32(x), (1, 1, 1, 3)) for x in (d.mean, d.std))
        return batch["image"] * std + mean

    a, b = pixels(out, d), pixels(ref, whole)
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("area", [None, 0.5])
def test_a_broken_picture_is_named(tree, area, capsys):
    root = tree("train", {"a": 4, "b": 4})
    tree("test", {"a": 2, "b": 2})
    path = root / "test" / "b" / "001.png"
    path.write_bytes(path.read_bytes()[:40])

    def load(corrupt):
        d = data.load(f"folder:{root}", size=8, area=area, corrupt=corrupt)
        return d.test.gather(d.test.resident, d.test.fetch(np.arange(d.test.size)))

    with pytest.raises(images.Corrupt, match=r"b/001.png: not a whole picture"):
        load("error")
    labels = load("skip")["label"].tolist()
    assert labels == ([0, 0, 1] if area is None else [0, 0, 1, -1])
    assert "001.png" in capsys.readouterr().err


def test_what_is_no_example_is_counted_and_never_a_class(tree, capsys):
    root = tree("", {"a": 6, "b": 6})
    tree("", {"__MACOSX/a": 2, "@eaDir/a": 2, "b/@eaDir/0.png": 1, "a/.thumbs/x": 3})
    names = "a/x.webp b/y.GIF b/z.gif b/.DS_Store b/._000.jpg Thumbs.db slurm-1.out"
    for name in names.split():
        (root / name).write_bytes(b"x")
    for _ in range(2):  # said once
        d = data.load(f"folder:{root}", size=8)
    assert d.class_names == ("a", "b") and d.train.size + d.test.size == 12
    assert capsys.readouterr().err == (
        f"folder:{root}: each folder is a class with all below it (12 pictures), one "
        "in five of each is test (2); 2 classes: a, b\n"
        f"folder:{root}: passed over 3 of other kinds than .jpg, .jpeg or .png (.gif, "
        ".webp), 7 of other programs (.DS_Store, ._000.jpg, .thumbs, @eaDir, "
        "Thumbs.db, __MACOSX), 1 beside the classes (slurm-1.out)\n"
    )


def test_the_way_to_the_set_may_be_hidden_and_pictures_deeper(tree, tmp_path):
    tree(".data/@eaDir", {"a": 6, "b": 6, "b/in/plain": 1})
    d = data.load(f"folder:{tmp_path / '.data' / '@eaDir'}", size=8)
    assert d.train.size + d.test.size == 13


LAYOUTS = {
    "capitals": ("Training", "Testing"),
    "all capitals": ("TRAIN", "VAL"),
    "affixes": ("train_set", "test_images"),
    "glued": ("trainset", "TestImages"),
    "years": ("train2017", "val2017"),
    "a word in common": ("asl_train", "asl_test"),
    "wrappers inside": ("seg_train/seg_train", "seg_test/seg_test"),
    "in a wrapper": ("x/y z/train", "x/y z/dev"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_splits_are_recognised(tree, name, capsys):
    train, test = LAYOUTS[name]
    root = tree(train, {"a": 6, "b": 6})
    tree(test, {"a": 2, "b": 1})
    litter = root / train / ".." / "__MACOSX" / "a"
    litter.mkdir(parents=True)
    (root / "readme.txt").touch()
    d = data.load(f"folder:{root}", size=8)
    assert d.class_names == ("a", "b") and d.validation is None
    assert (d.train.size, d.test.size) == (12, 3)
    said, passed = capsys.readouterr().err.splitlines()
    deep = 1 + train.startswith("x") * 2
    train, test = ("/".join(part.split("/")[:deep]) for part in (train, test))
    assert f"folder:{root}: {train}/ is train (12), {test}/ is test (3); 2" in said
    assert "1 of other programs (__MACOSX), 1 beside the classes (readme.txt)" in passed


def test_a_wrapper_is_stepped_into(tree, capsys):
    root = tree("photos/photos-main", {"a": 6, "b": 6})
    (root / "photos" / "@eaDir").mkdir()
    d = data.load(f"folder:{root}", size=8)
    assert d.class_names == ("a", "b") and d.train.size + d.test.size == 12
    assert "each folder in photos/photos-main/ is a class" in capsys.readouterr().err


@pytest.mark.parametrize("held", [0, 4])
def test_val_beside_train_and_test_validates_unless_some_are_held_out(
    tree, held, capsys
):
    root = tree("train", {"a": 6, "b": 6})
    tree("val", {"a": 3, "b": 2})
    tree("test", {"a": 2, "b": 1})
    (root / "meta").mkdir()
    (root / "train" / "sample.png").touch()
    d = data.load(f"folder:{root}", size=8, validation=held)
    sizes = [d.train.size, d.validation.size, d.test.size]
    assert sizes == ([8, 4, 3] if held else [12, 5, 3])
    said, passed = capsys.readouterr().err.splitlines()
    held_out = "data.validation holds 4 of train out in place of val/"
    assert (held_out if held else "val/ is validation (5)") in said
    assert "2 beside the classes (meta, sample.png)" in passed


def test_a_split_to_judge_may_lack_a_class(tree, capsys):
    root = tree("train", {"a": 4, "b": 4, "c": 4})
    tree("test", {"a": 0, "c": 2})  # a is there and empty, b is not there
    d = data.load(f"folder:{root}", size=8)
    assert d.classes == 3 and d.test.resident[1].tolist() == [2, 2]
    assert "test/ is test (2, none of a, b)" in capsys.readouterr().err
    for path in (root / "test" / "c").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="test: found no picture in any class"):
        data.load(f"folder:{root}", size=8)


@pytest.mark.parametrize(
    "classes",
    [
        ("bus", "car", "train"),
        ("testudo", "train_station", "valet"),
        ("invalid", "valid"),
        ("blood_test", "control"),
    ],
)
def test_classes_may_be_called_like_splits(tree, classes):
    root = tree("", {name: 5 for name in classes})
    d = data.load(f"folder:{root}", size=8)
    assert d.class_names == classes and d.train.size == 4 * len(classes)


AMBIGUOUS = {
    "one class": ({"a": 5}, "got one folder, a, expected two or more, one for each"),
    "one class of a split": ({"train/a": 5, "test/a": 2}, "train: got one folder, a"),
    "only train, and others": (
        {"train/a": 5, "train/b": 5, "bus": 3},
        "got the folders bus, train; train is read as a split, expected one called "
        "train and one called test or val beside it",
    ),
    "no train": ({"val/a": 5, "test/a": 5}, "folders test, val; test is read as a spl"),
    "no classes": (
        {"train": 5, "test": 5},
        "folders test, train, read as splits, and in train no folders, expect",
    ),
    "no labels": (
        {"train/a": 5, "train/b": 5, "test": 5},
        r"got no class of train in test \(no folder\), expected some of a, b; data"
        ".name=folder:.*train takes train alone",
    ),
    "other case": (
        {"train/A": 5, "train/B": 5, "test/a": 2, "test/b": 2},
        r"got no class of train in test \(a, b\), expected some of A, B",
    ),
    "sizes": (
        {"train_small/a": 2, "train_large/a": 5, "test/a": 2},
        "test, train_large, train_small; test is read as a split",
    ),
    "two of a kind": (
        {"train_set/a": 2, "train_images/a": 5, "test/a": 2},
        "got the folders train_images, train_set for train, expected one",
    ),
    "inside out": (
        {"a/train": 5, "a/test": 2, "b/train": 5, "b/test": 2},
        "got splits in a, b, expected them outside",
    ),
    "pictures beside labels": (
        {"images/train/a": 5, "images/val/a": 2, "labels": 2},
        "got splits in images, expected them outside",
    ),
    "other classes": (
        {"train/a": 5, "train/b": 5, "test/a": 2, "test/c": 2},
        "test: got the classes c, which the split to train, .*train, lacks",
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_an_error(tree, name):
    classes, words = AMBIGUOUS[name]
    with pytest.raises(ValueError, match=words):
        data.load(f"folder:{tree('', classes)}", size=8)


def test_val_judges_where_test_has_no_labels(tree, capsys):
    root = tree("train", {"a": 6, "b": 6})
    tree("", {"test/images": 3, "val/a": 2, "val/b": 1})
    d = data.load(f"folder:{root}", size=8)
    assert (d.test.size, d.validation) == (3, None)
    said, passed = capsys.readouterr().err.splitlines()
    assert "val/ is test (3)" in said and "beside the classes (test)" in passed


def test_linked_folders_and_classes_are_followed(tree, tmp_path, capsys):
    root = tree("set", {"a": 6, "b": 6}) / "set"
    tree("", {"more/deep": 3, "c": 5})
    (root / "a" / "linked").symlink_to(tmp_path / "more")
    (root / "c").symlink_to(tmp_path / "c")
    d = data.load(f"folder:{root}", size=8)
    assert d.class_names == ("a", "b", "c") and d.train.size + d.test.size == 20
    again = data.load(f"folder:{root}", size=8, validation=5)
    assert again.stamp == d.stamp and "20 files" in d.stamp
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "b" / "self.png").symlink_to("self.png")
    data.load(f"folder:{root}", size=8)
    *_, said = capsys.readouterr().err.splitlines()
    assert (
        "passed over 2 that cannot be read (gone: a link that leads nowhere, " in said
    )


@pytest.mark.parametrize("link", ["set/a/in/again", "set/b"])
def test_links_in_a_circle_are_named(tree, tmp_path, link):
    tree("set", {"a": 6, "a/in": 1})
    (tmp_path / link).symlink_to(tmp_path / "set")
    with pytest.raises(ValueError, match=f"{link}: got a link to .*set, which holds"):
        data.load(f"folder:{tmp_path / 'set'}", size=8)


def test_a_wrapper_that_is_a_circle_is_named(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    with pytest.raises(ValueError, match="again: got a link to"):
        data.load(f"folder:{tmp_path / 'set'}", size=8)


def test_files_without_permission_are_counted(tree, monkeypatch, capsys):
    root = tree("", {"a": 6, "b": 6})
    access = os.access

    def denied(path, mode):
        return "003" not in str(path) and access(path, mode)

    monkeypatch.setattr(os, "access", denied)
    d = data.load(f"folder:{root}", size=8)
    assert d.train.size + d.test.size == 10
    said = capsys.readouterr().err
    assert "2 that cannot be read (a/003.png: no permission to read it, …)" in said
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(
        ValueError, match="a: found no picture of 0 files, .*; 6 that cannot be read"
    ):
        data.load(f"folder:{root}", size=8)


def test_training_pictures_that_judge_are_counted(tree, capsys):
    root = tree("train", {"a": 6, "b": 6})
    (root / "val").symlink_to("train")
    data.load(f"folder:{root}", size=8, validation=2)
    assert "10 pictures of test are training ones, too" in capsys.readouterr().err


def test_a_folder_that_changed_is_read_anew(tree):
    root = tree("", {"a": 5, "b": 5})
    first = data.load(f"folder:{root}", size=8)
    tree("", {"a/more": 5})
    second = data.load(f"folder:{root}", size=8)
    assert second.train.size + second.test.size == 15
    (root / "a").rename(root / "c")
    third = data.load(f"folder:{root}", size=8)
    assert third.class_names == ("b", "c")
    assert len({first.stamp, second.stamp, third.stamp}) == 3
    for split in (third.train, third.test):  # nobody else has these arrays
        split.resident[1][:] = 1
    assert set(data.load(f"folder:{root}", size=8).train.resident[1]) == {0, 1}


def test_a_copy_has_the_stamp_of_the_set(tree, tmp_path):
    root = tree("train", {"a": 5, "b": 5})
    tree("test", {"a": 1})
    copy = tmp_path / "copy"
    for part in ("train", "test"):
        shutil.copytree(root / part, copy / "in" / part, copy_function=shutil.copyfile)
    was, now = (data.load(f"folder:{r}", size=8).stamp for r in (root / "", copy))
    assert was == now and "11 files" in was


NAMES = (b"caf\xe9", b"caf\xe8", "café".encode(), b"a\nb", b"x" * 200)


def test_names_of_any_bytes_are_told_as_text(tree, tmp_path, capsys):
    tree("", {os.fsdecode(name): 5 for name in NAMES})
    d = data.load(f"folder:{tmp_path}", size=8)
    told = ("a\nb", "café", r"caf\xe8", r"caf\xe9", "x" * 200)
    assert d.class_names == told
    assert json.loads(json.dumps(d.class_names, ensure_ascii=False).encode())
    (said,) = capsys.readouterr().err.splitlines()
    assert r"caf\xe9" in said and len(said) < 400


def test_one_name_may_be_spelled_in_two_ways(tree):
    root = tree("train", {"caf\u00e9": 5, "b": 5})
    tree("test", {"cafe\u0301": 2, "b": 1})
    d = data.load(f"folder:{root}", size=8)
    assert d.class_names == ("b", "caf\u00e9") and d.test.resident[1].sum() == 2


def test_an_error_of_the_system_is_no_broken_picture(tree, monkeypatch):
    root = tree("", {"a": 6, "b": 6})
    read = type(root).read_bytes

    def once_unreachable(path):
        if path.name == "003.png":
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(type(root), "read_bytes", once_unreachable)
    with pytest.raises(OSError, match="a/003.png: .*Input/output error"):
        data.load(f"folder:{root}", size=8, corrupt="skip")
    monkeypatch.undo()


def test_a_picture_that_went_after_it_was_listed_is_broken(tmp_path):
    gone = folder.Files((tmp_path / "gone.png",), np.zeros(1, np.int32))
    with pytest.raises(images.Corrupt, match="cannot be read: .*gone.png"):
        gone[0]


def test_errors(tree, tmp_path):
    with pytest.raises(ValueError, match="found no folder .*nowhere"):
        data.load(f"folder:{tmp_path / 'nowhere'}", size=8)
    with pytest.raises(ValueError, match="found no subfolder"):
        data.load(f"folder:{tmp_path}", size=8)
    root = tree("a", {"x": 2, "y": 0})
    with pytest.raises(
        ValueError, match=r"y: found no picture of 0 files, expected .jpg"
    ):
        data.load(f"folder:{root / 'a'}", size=8)
    with pytest.raises(ValueError, match="data.size: got None"):
        data.load(f"folder:{root / 'a'}")
    with pytest.raises(ValueError, match="data.classes: got 3, .* has 2"):
        data.load(f"folder:{tree('c', {'x': 6, 'y': 6}) / 'c'}", size=8, classes=3)
    with pytest.raises(ValueError, match="got 2 pictures, expected at least 5"):
        data.load(f"folder:{tree('d', {'x': 1, 'y': 1}) / 'd'}", size=8)
    with pytest.raises(ValueError, match="data.channels: got 2"):
        data.load("folder:c", size=8, channels=2)
