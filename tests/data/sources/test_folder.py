import numpy as np
import pytest

from a2os2a_jax import data
from a2os2a_jax.data import images
from a2os2a_jax.data.sources import folder

SIDES = ((12, 10), (9, 20), (16, 16))


@pytest.fixture(autouse=True)
def forget():
    folder._files.cache_clear()


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


def test_files_of_other_kinds_are_counted(tree, capsys):
    root = tree("", {"a": 6, "b": 6})
    for name in ("a/x.webp", "b/y.GIF", "b/z.gif", "b/.hidden.bmp", "b/._000.jpg"):
        (root / name).write_bytes(b"x")
    for _ in range(2):  # said once
        d = data.load(f"folder:{root}", size=8)
    assert d.train.size + d.test.size == 12
    assert capsys.readouterr().err == (
        f"folder:{root}: 3 files that are no .jpg, .jpeg or .png are left aside "
        "(.gif, .webp)\n"
    )


def test_what_lies_in_hidden_folders_is_no_picture_of_a_class(tree, tmp_path, capsys):
    tree(".data", {"a": 6, "b": 6})  # the way to the tree may be hidden
    for hidden in ("a/.ipynb_checkpoints", "b/in/.thumbs/small"):
        tree(f".data/{hidden}", {"": 3})
    (tmp_path / ".data" / "a" / ".ipynb_checkpoints" / "x.webp").write_bytes(b"x")
    tree(".data/b/in", {"plain": 1})
    d = data.load(f"folder:{tmp_path / '.data'}", size=8)
    assert d.train.size + d.test.size == 13
    assert capsys.readouterr().err == ""


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
    gone = folder._trees(root.resolve())[0].paths[0]
    gone.unlink()  # after it was listed
    d = data.load(f"folder:{root}", size=8, corrupt="skip")
    assert d.train.size + d.test.size == 11


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
    tree("b/train", {"x": 6, "y": 6})
    (root / "b" / "bus").mkdir()
    with pytest.raises(
        ValueError,
        match="b: got the folders bus, train; train is read as a split, expected test",
    ):
        data.load(f"folder:{root / 'b'}", size=8)
    tree("b/test", {"x": 1, "z": 1})
    with pytest.raises(ValueError, match=r"got classes \['z'\]"):
        data.load(f"folder:{root / 'b'}", size=8)
    with pytest.raises(ValueError, match="data.classes: got 3, .* has 2"):
        data.load(f"folder:{tree('c', {'x': 6, 'y': 6}) / 'c'}", size=8, classes=3)
    with pytest.raises(ValueError, match="got 2 pictures, expected at least 5"):
        data.load(f"folder:{tree('d', {'x': 1, 'y': 1}) / 'd'}", size=8)
    with pytest.raises(ValueError, match="data.channels: got 2"):
        data.load("folder:c", size=8, channels=2)
