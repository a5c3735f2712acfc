"""Which examples are drawn, what is fitted on them, and what is scored."""

import flax.linen as nn
import numpy as np
import pytest

from a2os2a_jax.data import pipeline
from a2os2a_jax.train import parallel, probe

LABELS = np.random.RandomState(0).permutation(np.repeat(np.arange(3), (20, 8, 12)))


@pytest.mark.parametrize(
    ("text", "shots"), [("1,5,10", (1, 5, 10)), ("5, 1,5", (1, 5)), (3, (3,))]
)
def test_shots_are_read(text, shots):
    assert probe.parse_shots(text) == shots


@pytest.mark.parametrize("text", ["", "0", "1,", "1,-5", "1.5", "all", "1;5"])
def test_what_is_no_number_of_shots_is_named(text):
    with pytest.raises(ValueError, match="eval.shots: got .* expected integers >= 1"):
        probe.parse_shots(text)


def test_of_each_class_as_many_are_drawn():
    drawn = probe.draw(LABELS, 3, (1, 4, 8), 5)
    assert len(drawn) == 5
    for each in drawn:
        for k, indices in each.items():
            assert np.bincount(LABELS[indices]).tolist() == [k] * 3
            assert len(set(indices.tolist())) == 3 * k
        assert set(each[1]) < set(each[4]) < set(each[8])


def test_draws_differ_from_each_other_and_never_from_themselves():
    drawn, again = (probe.draw(LABELS, 3, (4,), 5) for _ in range(2))
    few = probe.draw(LABELS, 3, (1, 4), 2)
    for a, b in zip(drawn, again, strict=True):
        np.testing.assert_array_equal(a[4], b[4])
    for a, b in zip(drawn, few, strict=False):  # whatever else is asked for
        np.testing.assert_array_equal(a[4], b[4])
    assert len({tuple(sorted(each[4])) for each in drawn}) == 5


def test_more_shots_than_the_smallest_class_has_are_refused():
    with pytest.raises(ValueError, match="got 9, expected at most 8, .* of class 1"):
        probe.draw(LABELS, 3, (1, 9), 5)
    with pytest.raises(ValueError, match="got 1, expected at most 0, .* of class 3"):
        probe.draw(LABELS, 4, (1,), 5)  # a class without examples


def _blobs(seed, shift=2.0, n=40):
    rng = np.random.RandomState(seed)
    y = np.arange(n) % 2
    x = rng.randn(n, 6)
    x[:, 0] += shift * (2 * y - 1)
    return x.astype("float32"), y


def test_what_can_be_separated_is_and_noise_is_not():
    assert probe.accuracy(*_blobs(0, 6.0), *_blobs(1, 6.0)) == 1
    assert 0.3 < probe.accuracy(*_blobs(0, 0.0), *_blobs(1, 0.0, 400)) < 0.7


def test_features_are_brought_to_one_scale_by_the_labelled_examples_alone():
    (x, y), (test_x, test_y) = _blobs(0, 1.0), _blobs(1, 1.0, 200)
    whole = probe.accuracy(x, y, test_x, test_y)
    assert 0.6 < whole < 0.95
    scale = np.array([1, 100, 1e-3, 1, 1, 7]).astype("float32")
    assert probe.accuracy(x * scale + 5, y, test_x * scale + 5, test_y) == whole
    # one by one is all at once: the scored examples have no say in it
    one = [
        probe.accuracy(x, y, a[None], b[None])
        for a, b in zip(test_x[:20], test_y[:20], strict=True)
    ]
    assert np.mean(one) == probe.accuracy(x, y, test_x[:20], test_y[:20])


def test_a_feature_that_never_varies_among_the_labelled_is_harmless():
    (x, y), (test_x, test_y) = _blobs(0, 6.0), _blobs(1, 6.0)
    x[:, 5], test_x[:, 5] = 0.1, 1e6 * test_x[:, 5]
    assert probe.accuracy(x, y, test_x, test_y) == 1


def test_spread():
    mean, deviation = probe.spread([0.5, 0.7])
    assert (mean, deviation) == pytest.approx((0.6, 0.2 / 2**0.5))
    assert probe.spread([0.5]) == (0.5, None)


class Sum(nn.Module):
    """Its feature is the sum of an example, in evaluation mode."""

    sows: bool = True

    @nn.compact
    def __call__(self, x, train=True):
        assert not train
        w = self.param("w", nn.initializers.ones, ())
        if self.sows:
            self.sow("features", "out", w * x.sum((1, 2, 3))[:, None])
        return x


IMAGES = np.arange(11 * 4, dtype=np.float32).reshape(11, 2, 2, 1)
SPLIT = pipeline.resident_split(IMAGES, np.arange(11) % 3, decode=lambda x: x / 2)


@pytest.mark.parametrize("batch", [4, 11, 64])
def test_every_example_asked_for_comes_once_in_its_order(batch):
    mesh, indices = parallel.make_mesh(1), np.array([7, 0, 10, 3, 4])
    variables = {"params": {"w": 2.0}}
    found = probe.extract(Sum(), variables, SPLIT, mesh, indices, batch=batch)
    images = IMAGES[indices]
    np.testing.assert_array_equal(found.features[:, 0], images.sum((1, 2, 3)))
    np.testing.assert_array_equal(found.inputs, images.reshape(5, 4) / 2)
    np.testing.assert_array_equal(found.labels, indices % 3)
    labels = probe.labels_of(SPLIT, mesh, batch)
    np.testing.assert_array_equal(labels, np.arange(11) % 3)


def test_inputs_are_left_out_where_they_are_too_large():
    assert probe.fits(50_000, (32, 32, 3)) and not probe.fits(50_000, (224, 224, 3))
    how = dict(batch=4, inputs=False)
    mesh, variables = parallel.make_mesh(1), {"params": {"w": 1.0}}
    found = probe.extract(Sum(), variables, SPLIT, mesh, np.arange(2), **how)
    assert found.inputs is None and found.features.shape == (2, 1)


def test_a_model_without_features_is_named():
    mesh, variables = parallel.make_mesh(1), {"params": {"w": 1.0}}
    with pytest.raises(ValueError, match="got Sum, which sows no features"):
        probe.extract(Sum(False), variables, SPLIT, mesh, np.arange(2), batch=2)
