import hashlib
import json

import numpy as np
import pytest

from a2os2a_jax import data
from a2os2a_jax.data.sources import npz


@pytest.fixture(autouse=True)
def forget():
    npz.read.cache_clear()


def arrays(n=20, shape=(4, 4, 3), dtype=np.uint8):
    rng = np.random.RandomState(0)
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


def pieces(tmp_path):
    a, digests = arrays(), {}
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
        (dict(test_labels=None), {}, r"expected \['test_labels'\], too"),
        (dict(train_labels=np.arange(19) % 4), {}, r"train_labels int64 \(19,\)"),
        (dict(train_labels=np.zeros(20)), {}, "train_labels float64"),
        (dict(test_images=np.zeros((8, 4, 5, 3))), {}, r"got test_images \(8, 4, 5"),
        (
            dict(
                test_images=np.zeros((0, 4, 4, 3), np.uint8), test_labels=np.arange(0)
            ),
            {},
            "a.npz: got no example in test_images, expected some",
        ),
        (dict(test_labels=np.full(8, -1)), {}, "data.classes: got 4"),
        (dict(class_names=["a", "b"]), {}, "data.classes: got 2"),
        (dict(train_images=np.ones((20, 4, 4, 3), int)), {}, "train_images int64"),
        (dict(test_images=np.ones((8, 4, 4, 3))), {}, "got test_images float64, exp"),
        ({}, dict(classes=3), "data.classes: got 3, .* labels up to 3"),
        ({}, dict(timesteps=4), "data.timesteps: got 4, .* has no frames"),
        ({}, dict(validation=20), "got 20 examples"),
    ],
)
def test_errors(tmp_path, change, options, message):
    a = {k: v for k, v in (arrays() | change).items() if v is not None}
    np.savez(tmp_path / "a.npz", **a)
    with pytest.raises(ValueError, match=message):
        data.load(f"npz:{tmp_path / 'a.npz'}", **options)


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
