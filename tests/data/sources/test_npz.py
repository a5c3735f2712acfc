import hashlib
import json
import shutil

import numpy as np
import pytest

from a2os2a_jax import data


def arrays(n=20, shape=(4, 4, 3), dtype=np.uint8, seed=0):
    rng = np.random.RandomState(seed)
    return {
        "train_images": rng.randint(0, 256, (n, *shape)).astype(dtype),
        "train_labels": np.arange(n) % 4,
        "test_images": rng.randint(0, 256, (8, *shape)).astype(dtype),
        "test_labels": np.arange(8) % 4,
    }


def batch(split, index):
    return split.gather(split.resident, split.fetch(np.asarray(index)))


def test_one_file(tmp_path):
    a = arrays()
    np.savez(tmp_path / "a.npz", **a, class_names=list("wxyz"))
    d = data.load("npz:a.npz", data_dir=str(tmp_path), validation=4)
    assert (d.train.size, d.validation.size, d.test.size, d.classes) == (16, 4, 8, 4)
    assert d.class_names == tuple("wxyz") and d.shape == (4, 4, 3)
    out = batch(d.test, [2, 7])
    pixels = np.asarray(out["image"]) * np.reshape(d.std, (1, 1, 1, 3))
    pixels = 255 * (pixels + np.reshape(d.mean, (1, 1, 1, 3)))
    np.testing.assert_allclose(pixels, a["test_images"][[2, 7]], atol=1e-3)
    assert out["label"].tolist() == [2, 3]


def test_the_names_that_keras_gives(tmp_path):
    a = arrays()
    keys = ("x_train", "y_train", "x_test", "y_test")
    np.savez(tmp_path / "k.npz", **dict(zip(keys, a.values(), strict=True)))
    assert data.load(f"npz:{tmp_path / 'k.npz'}", size=6).shape == (6, 6, 3)


def test_sequences_and_floats_pass_as_they_are(tmp_path):
    a = arrays(shape=(5, 4, 4, 2))
    np.savez(tmp_path / "s.npz", **a)
    d = data.load(f"npz:{tmp_path / 's.npz'}", timesteps=5)
    assert d.shape == (5, 4, 4, 2)
    np.testing.assert_array_equal(batch(d.train, [3])["image"][0], a["train_images"][3])
    np.savez(tmp_path / "f.npz", **arrays(dtype=np.float32))
    d = data.load(f"npz:{tmp_path / 'f.npz'}")
    assert d.mean == (0.0,) * 3 and batch(d.train, [0])["image"].max() > 200


def pieces(tmp_path, seed=0):
    a, digests = arrays(seed=seed), {}
    for n in range(3):
        part = {k: v[len(v) * n // 3 : len(v) * (n + 1) // 3] for k, v in a.items()}
        np.savez_compressed(tmp_path / f"piece_{n}.npz", **part)
        content = (tmp_path / f"piece_{n}.npz").read_bytes()
        digests[f"piece_{n}.npz"] = hashlib.sha256(content).hexdigest()
    about = {"name": "cifar10", "sha256": digests}
    (tmp_path / "pieces.json").write_text(json.dumps(about))
    return a


def test_pieces_are_joined(tmp_path):
    a = pieces(tmp_path)
    d = data.load(f"npz:{tmp_path}")
    np.testing.assert_array_equal(d.train.resident[0], a["train_images"])
    np.testing.assert_array_equal(d.test.resident[1], a["test_labels"])
    assert d.mean == (0.4914, 0.4822, 0.4465) and "CIFAR-10" in d.about


def test_a_missing_or_damaged_piece_is_found(tmp_path):
    pieces(tmp_path)
    path = tmp_path / "piece_1.npz"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="piece_1.npz: not the file that pieces.json"):
        data.load(f"npz:{tmp_path}")
    path.unlink()
    with pytest.raises(ValueError, match="piece_1.npz: missing.*copy it here"):
        data.load(f"npz:{tmp_path}")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (dict(test_labels=None), {}, "expected test_labels, too"),
        (dict(train_labels=np.arange(19) % 4), {}, r"train_labels int64 \(19,\)"),
        (dict(test_images=np.zeros((8, 4, 5, 3))), {}, r"got test_images float64 \(8"),
        (
            dict(
                test_images=np.zeros((0, 4, 4, 3), np.uint8), test_labels=np.arange(0)
            ),
            {},
            "a.npz: got no example in test_images, expected some",
        ),
        (dict(class_names=["a", "b"]), {}, r"got 2 classes, .* train_labels\[3\] = 3"),
        (
            dict(class_names=list("abcd")),
            dict(classes=5),
            "got 5, .* has 4 class_names",
        ),
        (dict(train_images=np.ones((20, 4, 4, 3), int)), {}, "train_images int64"),
        (dict(test_images=np.ones((8, 4, 4, 3))), {}, "got test_images float64 "),
        ({}, dict(classes=3), r"data.classes: got 3 .* train_labels\[3\] = 3"),
        (
            {},
            dict(classes=2**40),
            "data.classes: got 1099511627776, expected 1 to 1,04",
        ),
        ({}, dict(timesteps=4), "data.timesteps: got 4, .* has no frames"),
        ({}, dict(validation=20), "data.validation: got 20 examples, expected 0 to 19"),
    ],
)
def test_errors(tmp_path, change, options, message):
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path, options, **change)


LABELS = arrays()["train_labels"]
IMAGES = arrays()["train_images"]


def loaded(tmp_path, options=None, **change):
    """The set of `arrays` with some changed, or left out where they are None."""
    a = {k: v for k, v in (arrays() | change).items() if v is not None}
    np.savez(tmp_path / "a.npz", **a)
    return data.load(f"npz:{tmp_path / 'a.npz'}", **(options or {}))


def with_one(array, value):
    """The array as it is, but for a value at index 7."""
    array = array.copy()
    array[7] = value
    return array


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (with_one(LABELS, 2**40), "= 1099511627776, expected below 28, the number of"),
        (with_one(LABELS, 28), "= 28, expected below 28"),
        (with_one(LABELS.astype(np.uint64), 2**64 - 1), "= 18446744073709551615, e"),
        (with_one(LABELS, -1), "= -1, expected 0 or more"),
        (with_one(LABELS.astype(np.int8), -128), "= -128, expected 0 or more"),
        (with_one(LABELS * 1.0, 0.5), "= 0.5, expected whole numbers"),
        (with_one(LABELS * 1.0, np.nan), "= nan, expected whole numbers"),
        (with_one(LABELS * 1.0, np.inf), "= inf, expected whole numbers"),
    ],
)
def test_a_label_that_is_no_class_is_named_with_its_example(tmp_path, labels, message):
    with pytest.raises(ValueError, match=r"a.npz: got train_labels\[7\] " + message):
        loaded(tmp_path, train_labels=labels)


def test_classes_without_examples_are_told_or_asked_for(tmp_path, capsys):
    labels = with_one(LABELS, 27)
    assert loaded(tmp_path, train_labels=labels).classes == 28
    assert "23 of 28 classes, such as 4, have no training" in capsys.readouterr().err
    assert loaded(tmp_path, dict(classes=1000)).classes == 1000
    names = list(map(str, range(50)))
    assert loaded(tmp_path, class_names=names).class_names == tuple(names)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "form",
    [
        lambda y: y[:, None].astype(np.uint8),  # MedMNIST
        lambda y: y.astype(np.float32),
        lambda y: np.eye(4)[y],  # Keras' to_categorical
        lambda y: np.eye(4, dtype=bool)[y],
        lambda y: y.astype(">i4"),
    ],
)
def test_labels_of_other_forms(tmp_path, form):
    change = {key: form(arrays()[key]) for key in ("train_labels", "test_labels")}
    d = loaded(tmp_path, **change)
    assert d.classes == 4 and d.train.resident[1].tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.eye(4)[LABELS] * (np.arange(20) != 5)[:, None],
            "of which row 5 is not one",
        ),
        (np.ones((20, 14), int), r"\(20, 14\), of which row 0 is not one-hot"),
        (LABELS[:, None, None], r"int64 \(20, 1, 1\), expected whole numbers \[20\]"),
        (np.array(3), r"int64 \(\), expected whole numbers \[20\]"),
        (np.full(20, "cat"), "got train_labels <U3"),
    ],
)
def test_labels_of_no_form(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path, train_labels=labels)


def test_pictures_without_channels_are_grey(tmp_path):
    grey = {k: arrays()[k][..., 0] for k in ("train_images", "test_images")}
    d = loaded(tmp_path, **grey)
    assert d.shape == (4, 4, 1) and d.stored == (4, 4)
    np.testing.assert_array_equal(d.train.resident[0][..., 0], grey["train_images"])


def test_channels_that_come_first_are_no_height(tmp_path):
    a = arrays(shape=(3, 8, 8))
    with pytest.raises(ValueError, match=r"\(20, 3, 8, 8\), expected channels last"):
        loaded(tmp_path, dict(size=8), **a)


def test_a_validation_split_of_the_file(tmp_path):
    a = arrays()
    extra = dict(val_images=a["test_images"][:5], val_labels=a["test_labels"][:5, None])
    d = loaded(tmp_path, **extra)
    assert (d.train.size, d.validation.size, d.test.size) == (20, 5, 8)
    np.testing.assert_array_equal(d.validation.resident[0], extra["val_images"])
    d = loaded(tmp_path, dict(validation=4), **extra)  # asked for: of training
    assert (d.train.size, d.validation.size) == (16, 4)
    with pytest.raises(ValueError, match="expected val_labels, too"):
        loaded(tmp_path, val_images=extra["val_images"])


def test_names_of_arrays(tmp_path, capsys):
    a = arrays()
    keras = dict(
        zip(("X_train", "Y_train", "x_test", "y_test"), a.values(), strict=True)
    )
    nothing = dict.fromkeys(a)
    assert loaded(tmp_path, **(nothing | keras)).train.size == 20
    with pytest.raises(
        ValueError, match="two ways to name arrays, train_im.* and X_tr"
    ):
        loaded(tmp_path, **keras)
    mixed = dict(test_images=None, test_labels=None)
    mixed |= dict(x_test=a["test_images"], y_test=a["test_labels"])
    with pytest.raises(ValueError, match="two ways to name arrays"):
        loaded(tmp_path, **mixed)
    with pytest.raises(
        ValueError, match="got train_labels and TRAIN_labels, names for"
    ):
        loaded(tmp_path, TRAIN_labels=a["train_labels"])
    with pytest.raises(ValueError, match="got X_train, .*, expected y_test, too"):
        loaded(tmp_path, **(nothing | keras | {"y_test": None}))
    capsys.readouterr()
    assert loaded(tmp_path, version=np.array(3), ids=np.arange(20)).train.size == 20
    assert capsys.readouterr().err.endswith("a.npz: left aside version, ids\n")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            np.array("a,b,c,d"),
            r"got class_names <U7 \(\), expected strings \[classes\]",
        ),
        (np.arange(4) / 2, "got class_names float64"),
        (np.array([["a", "b"]] * 2), r"got class_names <U1 \(2, 2\)"),
        (np.array(list("abcd"), dtype=object), "got Python objects in class_names"),
    ],
)
def test_class_names_of_no_form(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path, class_names=names)


def test_class_names_as_bytes_and_numbers(tmp_path):
    assert loaded(tmp_path, class_names=np.array([b"a", b"\xff", b"c", b"d"]))
    d = loaded(tmp_path, class_names=np.arange(10, 14))
    assert d.class_names == ("10", "11", "12", "13")
    assert loaded(tmp_path, class_names=np.array([], "U1")).class_names[0] == "0"


@pytest.mark.parametrize("key", ["train_images", "test_images", "val_images"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_what_is_not_finite_is_named(tmp_path, key, bad):
    a = arrays(dtype=np.float64)
    a |= dict(val_images=a["test_images"], val_labels=a["test_labels"])
    a[key] = a[key].copy()
    a[key][6, 1, 2, 0] = bad
    with pytest.raises(ValueError, match=rf"a.npz: got NaN or infinity in {key}\[6\]"):
        loaded(tmp_path, **a)


def test_floats_of_any_machine(tmp_path):
    for kind in (">f4", "<f8", "g", "f2"):
        d = loaded(tmp_path, **arrays(dtype=np.dtype(kind)))
        np.testing.assert_array_equal(batch(d.train, [3])["image"][0], IMAGES[3])


@pytest.mark.parametrize(
    ("change", "kind"),
    [(dict(dtype=np.float32), "floats"), (dict(shape=(2, 4, 4, 3)), "sequences")],
)
def test_only_bytes_are_resized(tmp_path, change, kind):
    with pytest.raises(ValueError, match=f"data.size: got 6, {kind} of .* are 4x4"):
        loaded(tmp_path, dict(size=6), **arrays(**change))


def test_what_is_written_anew_is_read_anew(tmp_path):
    a = arrays()
    first = loaded(tmp_path)
    again = loaded(tmp_path)  # written anew, and the same
    assert first.stamp == again.stamp
    with pytest.raises(ValueError, match="read-only"):  # two callers have it
        again.train.resident[0][0] = 0
    other = loaded(tmp_path, train_images=255 - a["train_images"])  # as many bytes
    np.testing.assert_array_equal(other.train.resident[0], 255 - a["train_images"])
    np.testing.assert_array_equal(first.train.resident[0], a["train_images"])
    assert other.stamp != first.stamp


def test_pieces_that_are_written_anew_are_read_anew(tmp_path):
    a = pieces(tmp_path)
    first = data.load(f"npz:{tmp_path}")
    pieces(tmp_path, seed=1)
    other = data.load(f"npz:{tmp_path}")
    assert not np.array_equal(other.train.resident[0], a["train_images"])
    assert other.stamp != first.stamp


def test_a_copy_has_the_same_stamp(tmp_path):
    pieces(tmp_path)
    np.savez(tmp_path / "other.npz", **arrays())
    for name in ("", "other.npz"):
        copy = tmp_path / f"copy{name}"
        (shutil.copy if name else shutil.copytree)(tmp_path / name, copy)
        assert (
            data.load(f"npz:{copy}").stamp == data.load(f"npz:{tmp_path / name}").stamp
        )


def test_pictures_that_are_no_squares_need_a_size(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(shape=(4, 6, 3)))
    with pytest.raises(ValueError, match="data.size: got None, .* has 4x6 pixels"):
        data.load(f"npz:{tmp_path / 'a.npz'}")
    assert data.load(f"npz:{tmp_path / 'a.npz'}", size=8).shape == (8, 8, 3)


def test_pieces_without_their_list_are_refused(tmp_path):
    pieces(tmp_path)
    path = tmp_path / "pieces.json"
    content = path.read_text()
    path.unlink()
    with pytest.raises(ValueError, match="got 3 pieces and no pieces.json.*copy it"):
        data.load(f"npz:{tmp_path}")
    for cut in (content[:30], "[]", "{}"):
        path.write_text(cut)
        with pytest.raises(ValueError, match="pieces.json: not a whole list"):
            data.load(f"npz:{tmp_path}")
    path.unlink()
    for piece in tmp_path.glob("piece_*"):  # anybody's files need no list
        piece.rename(piece.with_name(piece.name.replace("piece", "part")))
    assert data.load(f"npz:{tmp_path}").train.size == 20


def test_no_file_and_half_a_file(tmp_path):
    with pytest.raises(ValueError, match="found no .npz file at .*none.npz"):
        data.load(f"npz:{tmp_path / 'none.npz'}")
    np.savez(tmp_path / "a.npz", **arrays())
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="a.npz: not a whole .npz file"):
        data.load(f"npz:{tmp_path / 'a.npz'}")
