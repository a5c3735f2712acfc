import builtins
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.data import pipeline
from a2os2a_jax.data.sources import digits

sklearn_datasets = pytest.importorskip("sklearn.datasets")


def pixels(split):
    return split.resident[0].reshape(-1, 64)


def indices(split):
    """Positions in scikit-learn's order, found by the images themselves."""
    images = sklearn_datasets.load_digits().data.astype(np.uint8)
    position = {image.tobytes(): i for i, image in enumerate(images)}
    assert len(position) == 1797  # no two are the same, so bytes name an image
    return np.array([position[image.tobytes()] for image in pixels(split)])


def test_sizes_and_description():
    data = digits.load()
    assert (data.train.size, data.test.size, data.validation) == (1437, 360, None)
    assert (data.name, data.shape, data.classes) == ("digits", (8, 8, 1), 10)
    assert data.class_names[3] == "3"


def test_every_image_is_in_one_split():
    data = digits.load(validation=137)
    parts = [indices(s) for s in (data.train, data.validation, data.test)]
    assert [len(p) for p in parts] == [1300, 137, 360]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1797))


def test_images_keep_their_labels():
    data, labels = digits.load(validation=137), sklearn_datasets.load_digits().target
    for split in (data.train, data.validation, data.test):
        np.testing.assert_array_equal(split.resident[1], labels[indices(split)])


def test_splits_are_stratified():
    labels = sklearn_datasets.load_digits().target
    data = digits.load(validation=137)
    for split in (data.train, data.validation, data.test):
        share = np.bincount(labels) * split.size / 1797
        assert np.abs(np.bincount(split.resident[1]) - share).max() < 1.5
    share = np.bincount(labels) * 360 / 1797
    assert np.abs(np.bincount(data.test.resident[1]) - share).max() < 1


def test_the_test_set_is_the_same_in_every_release():
    held = indices(digits.load().test).astype("<i4").tobytes()
    assert hashlib.sha256(held).hexdigest()[:16] == "737a416c9d9883ba"


def test_validation_leaves_the_test_set_alone():
    a, b = digits.load(), digits.load(validation=300)
    np.testing.assert_array_equal(pixels(a.test), pixels(b.test))


def test_constants_are_those_of_the_training_images():
    x = pixels(digits.load().train) / 16
    assert digits.MEAN == round(x.mean(), 4)
    assert digits.STD == round(x.std(), 4)


def test_gather_normalises():
    data = digits.load()
    index = data.train.fetch(np.arange(data.train.size))
    out = jax.jit(data.train.gather)(data.train.resident, index)
    image = np.asarray(out["image"])
    assert image.shape == (1437, 8, 8, 1)
    assert abs(image.mean()) < 1e-3 and abs(image.std() - 1) < 1e-3
    stored = data.train.resident[0]
    np.testing.assert_allclose(image[stored == 0], data.black[0], rtol=1e-6)
    np.testing.assert_allclose(
        image[5, 4, 3, 0], (stored[5, 4, 3, 0] / 16 - 0.3047) / 0.3759, rtol=1e-5
    )


def _images(size, count=5):
    split = digits.load(size=size).test
    index = split.fetch(np.arange(count))
    return np.asarray(split.gather(split.resident, index)["image"])


def test_of_its_own_size_an_image_is_bit_for_bit_what_is_stored():
    stored = jnp.asarray(digits.load().test.resident[0][:5])
    want = (stored / 16 - 0.3047) / 0.3759
    np.testing.assert_array_equal(_images(8), want)


def _enlarged(image, size):
    """[8, 8] -> [size, size] between pixel centres, written out; edges go on."""
    at = np.clip((np.arange(size) + 0.5) * 8 / size - 0.5, 0, 7)
    low = np.minimum(at.astype(int), 6)
    part = at - low
    rows = image[low] * (1 - part)[:, None] + image[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


@pytest.mark.parametrize("size", [9, 16, 20])
def test_a_larger_image_is_interpolated_and_adds_nothing(size):
    data = digits.load(size=size)
    assert data.shape == (size, size, 1)
    assert data.test.resident[0].shape == (360, 8, 8, 1)  # enlarged on the device
    got, stored = _images(size), _images(8)
    assert got.shape == (5, size, size, 1)
    for image, small in zip(got[..., 0], stored[..., 0], strict=True):
        np.testing.assert_allclose(image, _enlarged(small, size), atol=1e-5)


def test_order_of_the_seed_reaches_every_training_image():
    data = digits.load()
    seen = [
        pipeline.train_indices(s, seed=1, size=data.train.size, batch=479)
        for s in range(3)
    ]
    assert np.unique(np.concatenate(seen)).size == 1437


def test_errors():
    for options, got in (
        ({"size": 7}, "size 7 and 10"),
        ({"classes": 9}, "size 8 and 9"),
    ):
        message = f"got {got} classes, expected at least 8 and 10"
        with pytest.raises(ValueError, match=message):
            digits.load(**options)
    with pytest.raises(ValueError, match="got 1437 examples, expected 0 to 1436"):
        digits.load(validation=1437)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    genuine = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        digits.load()
