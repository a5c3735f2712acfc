import dataclasses

import flax.linen as nn
import numpy as np
import pytest

from a2os2a_jax.data import pipeline
from a2os2a_jax.train import evaluate, parallel

SIZE, CLASSES = 100, 10
_draw = np.random.default_rng(1).normal(size=(7, CLASSES)).astype(np.float32)
HEAD = {"kernel": _draw[:6], "bias": _draw[6]}


class Linear(nn.Module):
    """Sows its input, so that there is an activity."""

    @nn.compact
    def __call__(self, x, train=False):
        self.sow("spikes", "out", x > 0)
        self.sow("potentials", "out", x)
        return nn.Dense(CLASSES, name="head")(x)


@pytest.fixture(scope="module")
def data():
    """(images, labels, split); the first example is by far the worst."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(SIZE, 6)).astype(np.float32)
    images[0] *= 30
    labels = rng.integers(0, CLASSES, SIZE)
    labels[0] = (images[0] @ HEAD["kernel"] + HEAD["bias"]).argmin()
    return images, labels, pipeline.resident_split(images, labels)


@pytest.fixture(scope="module")
def variables():
    return {"params": {"head": HEAD}}


@pytest.fixture(scope="module")
def reference(data):
    """reference(n) -> scores of the first n examples, by numpy in float64."""
    images, labels, _ = data
    logits = np.float64(images) @ np.float64(HEAD["kernel"]) + np.float64(HEAD["bias"])
    top = logits.max(1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
    rank = (logits > logits[np.arange(SIZE), labels][:, None]).sum(1)

    def get(n):
        return {
            "accuracy": (rank[:n] < 1).mean(),
            "top5": (rank[:n] < 5).mean(),
            "loss": -log_p[np.arange(n), labels[:n]].mean(),
            "count": n,
        }

    return get


def _evaluator(split, **options):
    return evaluate.Evaluator(Linear(), split, parallel.make_mesh(1), **options)


@pytest.mark.parametrize("examples", [None, 37, 1])
@pytest.mark.parametrize("batch", [1, 7, 64, 100, 360])
def test_every_example_counts_once_for_any_batch(
    data, variables, reference, batch, examples
):
    got = _evaluator(data[2], batch=batch, examples=examples)(variables)
    want = reference(examples or SIZE)
    assert got.keys() == want.keys() and isinstance(got["count"], int)
    for name in ("accuracy", "top5", "count"):
        assert got[name] == want[name]
    assert got["loss"] == pytest.approx(want["loss"], rel=1e-6)


def test_the_reference_tells_examples_apart(data, variables, reference):
    # or the test above shows less than it says
    few, more = reference(SIZE - 1), reference(SIZE)
    assert 0 < more["accuracy"] < more["top5"] < 1
    assert abs(few["loss"] - more["loss"]) > 1e-4
    once_too_often = reference(1)["loss"] / SIZE  # the padding's example again
    assert once_too_often > 0.1 * more["loss"]


def test_padding_counts_nowhere(data, variables, reference, monkeypatch):
    images, labels, split = data
    poisoned = np.concatenate([images, np.full((1, 6), np.nan, np.float32)])
    split = dataclasses.replace(
        split, resident=(poisoned, np.append(labels, 0).astype(np.int32))
    )
    sound = pipeline.padded_batches

    def padded_with_poison(size, batch):
        for index, mask in sound(size, batch):
            yield np.where(mask > 0, index, SIZE), mask

    monkeypatch.setattr(pipeline, "padded_batches", padded_with_poison)
    got = _evaluator(split, batch=64)(variables)
    assert got == pytest.approx(reference(SIZE), rel=1e-6)


def test_running_it_twice_gives_the_same(data, variables):
    evaluator = _evaluator(data[2], batch=7)
    assert evaluator(variables) == evaluator(variables)


@pytest.mark.parametrize("examples", [0, SIZE + 1, -1])
def test_more_examples_than_there_are_is_an_error(data, examples):
    with pytest.raises(ValueError, match=f"got {examples}, expected 1 to {SIZE}"):
        _evaluator(data[2], batch=7, examples=examples)


def test_activity_is_that_of_the_first_batch(data, variables):
    images, _, split = data
    got = _evaluator(split, batch=8).activity(variables)
    assert got["firing_rate"]["out"] == pytest.approx((images[:8] > 0).mean())
    near = (abs(images[:8]) < 1).mean()
    assert got["near_threshold"]["out"] == pytest.approx(near)


def test_padding_counts_in_no_activity(data, variables, monkeypatch):
    images, _, split = data
    sound = pipeline.padded_batches
    monkeypatch.setattr(
        pipeline, "padded_batches", lambda size, _: sound(size, 8)
    )  # as where devices share a batch that is larger than the split
    got = _evaluator(split, batch=8, examples=5).activity(variables)
    assert got["firing_rate"]["out"] == pytest.approx((images[:5] > 0).mean())
    near = (abs(images[:5]) < 1).mean()
    assert got["near_threshold"]["out"] == pytest.approx(near)
    assert near != pytest.approx((abs(images[[0, 1, 2, 3, 4, 0, 0, 0]]) < 1).mean())
