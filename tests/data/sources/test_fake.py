import jax
import numpy as np
import pytest

from a2os2a_jax.data.sources import fake


def draw(split, batch=256):
    """All examples of a split of up to `batch`; one batch size is compiled once."""
    index = split.fetch(np.arange(batch))
    out = jax.jit(split.gather)(split.resident, index)
    return np.asarray(out["image"])[: split.size], np.asarray(out["label"])[
        : split.size
    ]


def test_defaults():
    data = fake.load()
    assert (data.shape, data.classes) == ((32, 32, 3), 10)
    assert (data.train.size, data.test.size, data.validation) == (256, 100, None)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"size": 224}, (224, 224, 3)),
        ({"size": 3, "channels": 1}, (3, 3, 1)),
        ({"size": 8, "channels": 2, "timesteps": 5}, (5, 8, 8, 2)),
    ],
)
def test_shapes(options, shape):
    data = fake.load(**options)
    images, labels = draw(data.train, 4)
    assert data.shape == shape and images.shape == (4, *shape)
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)


def test_labels_go_round():
    _, labels = draw(fake.load(size=4, classes=7).train)
    np.testing.assert_array_equal(labels, np.arange(256) % 7)


def test_the_class_can_be_learnt_on_train_and_read_on_test():
    data = fake.load(size=8, channels=1)
    (x, y), (x_test, y_test) = draw(data.train), draw(data.test)
    means = np.stack([x[y == c].mean(0) for c in range(10)])
    distance = ((x_test[:, None] - means) ** 2).sum((2, 3, 4))
    assert (distance.argmin(1) == y_test).mean() > 0.95
    noise = x - means[y]
    assert 0.9 < noise.std() < 1.05


def test_no_two_images_or_frames_are_equal():
    data = fake.load(size=4, timesteps=3, validation=56)
    splits = (data.train, data.validation, data.test)
    images = [draw(s)[0] for s in splits]
    frames = np.concatenate(images).reshape(-1, 4 * 4 * 3)
    assert len({f.tobytes() for f in frames}) == 3 * 356


def test_validation_is_the_end_of_training_with_every_class():
    whole, cut = fake.load(size=4), fake.load(size=4, validation=50)
    images, labels = draw(whole.train)
    assert (cut.train.size, cut.validation.size) == (206, 50)
    for split, part in [(cut.train, slice(206)), (cut.validation, slice(206, None))]:
        out = draw(split)
        np.testing.assert_array_equal(out[0], images[part])
        np.testing.assert_array_equal(out[1], labels[part])
    np.testing.assert_array_equal(np.bincount(draw(cut.validation)[1]), 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "fake: got size 0, expected at least 1"),
        ({"timesteps": 0}, "fake: got timesteps 0"),
        ({"train_examples": 0}, "fake: got train_examples 0"),
        ({"validation": 256}, "got 256 examples, expected 0 to 255"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        fake.load(**options)
