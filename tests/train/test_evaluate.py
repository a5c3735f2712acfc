import dataclasses
import functools
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.data import pipeline
from a2os2a_jax.train import evaluate, parallel, step

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


def test_nothing_to_count_is_an_error(data, variables):
    images, labels, _ = data
    split = pipeline.resident_split(images, np.full_like(labels, -1))
    evaluator = _evaluator(split, batch=50)
    with pytest.raises(ValueError, match="got 0 examples that count.*data.corrupt"):
        evaluator(variables)
    with pytest.raises(ValueError, match="got 0 examples that count"):
        evaluate.summary({"count": np.int32(0)})


@pytest.mark.parametrize("examples", [None, 5])
def test_activity_is_that_of_all_examples_whatever_the_batch(data, variables, examples):
    """Exactly; padding and what cannot be read count nowhere, and order does not."""
    images, labels, _ = data
    labels = np.where(np.arange(SIZE) == 3, -1, labels)  # could not be read
    read = np.delete(images[:examples], 3, 0)
    want = {
        "firing_rate": {"out": (read > 0).sum() / read.size},
        "near_threshold": {"out": (abs(read) < 1).sum() / read.size},
        "examples": len(read),
    }
    split = pipeline.resident_split(images, labels)
    for batch in (1, 8, 64):
        got = _evaluator(split, batch=batch, examples=examples).activity(variables)
        assert got == want
    if examples is None:  # as of a set that is sorted by what it is
        order = np.argsort(images.mean(1))
        split = pipeline.resident_split(images[order], labels[order])
        assert _evaluator(split, batch=8).activity(variables) == want


def test_of_a_large_split_a_sample_from_everywhere_shows_the_activity(
    data, variables, monkeypatch
):
    monkeypatch.setattr(evaluate, "ACTIVITY", 200)
    images = np.repeat(np.float32([[-1], [1]]), 500, 0) * np.ones(6, np.float32)
    split = pipeline.resident_split(images, np.zeros(1000, np.int32))
    got = _evaluator(split, batch=64).activity(variables)
    assert got["examples"] == 200 and abs(got["firing_rate"]["out"] - 0.5) < 0.1
    assert _evaluator(split, batch=7).activity(variables) == got
    chosen = evaluate.sample(1000, 200)
    assert len(set(chosen)) == 200 and (np.diff(chosen) > 0).all()
    assert chosen.min() < 50 and chosen.max() > 950
    assert evaluate.sample(5, 200).tolist() == [0, 1, 2, 3, 4]


# --- the report


class Steps(nn.Module):
    """Images [B, T, C] are the logits of the steps."""

    def __call__(self, x, train=False, per_step=False):
        return x if per_step else x.mean(1)


T, ABSENT = 3, 9  # no example has the label ABSENT


@functools.cache
def _scores():
    """(scores [SIZE, T, CLASSES] float32, labels): right more often, the later."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, ABSENT, SIZE)
    scores = rng.normal(size=(SIZE, T, CLASSES)).astype(np.float32)
    for t, i in np.ndindex(T, SIZE):
        scores[i, t, labels[i]] += 0.5 + t
    # padding repeats the first, of which no other example is the like
    scores[0, :, labels[0]] = -9
    return scores, labels


def _by_numpy(scores, labels):
    """The report, in float64 and in loops."""
    n, steps, classes = scores.shape
    scores = np.float64(scores)
    means = np.stack([scores[:, : t + 1].mean(1) for t in range(steps)], 1)
    answers = means.argmax(-1)
    logits = means[:, -1]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    confusion = np.zeros((classes, classes), int)
    for label, answer in zip(labels, answers[:, -1], strict=True):
        confusion[label, answer] += 1
    bins = [[] for _ in range(15)]
    for i in range(n):
        (b,) = (b for b in range(15) if b / 15 < p[i].max() <= (b + 1) / 15)
        bins[b].append((answers[i, -1] == labels[i], p[i].max()))
    means = [np.mean(b, 0).tolist() if b else (None, None) for b in bins]
    rank = (logits > logits[np.arange(n), labels][:, None]).sum(1)
    return {
        "accuracy": (answers[:, -1] == labels).mean(),
        "top5": (rank < 5).mean(),
        "loss": -np.log(p[np.arange(n), labels]).mean(),
        "count": n,
        "any_time": [(answers[:, t] == labels).mean() for t in range(steps)],
        "ece": sum(
            len(b) / n * abs(m[0] - m[1]) for b, m in zip(bins, means, strict=True) if b
        ),
        "bins": {
            "count": [len(b) for b in bins],
            "accuracy": [m[0] for m in means],
            "confidence": [m[1] for m in means],
        },
        "per_class": [
            row[c] / row.sum() if row.sum() else None for c, row in enumerate(confusion)
        ],
        "per_class_count": confusion.sum(1).tolist(),
        "confusion": confusion.tolist(),
    }


def _assert_same(got, want):
    """Counts and shares of counts exactly, the rest to float32."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        if name == "bins":
            assert got[name]["count"] == value["count"]
            for key in ("accuracy", "confidence"):
                a, b = (np.array(x[key], float) for x in (got[name], value))
                np.testing.assert_allclose(a, b, rtol=1e-5)  # None is NaN
        elif name in ("loss", "ece"):
            assert got[name] == pytest.approx(value, rel=1e-5, abs=1e-6)
        else:
            assert got[name] == value, name


def _report(*args, **options):
    return _steps(*args, **options).report({})


def _steps(scores, labels, batch=64, examples=None, devices=1, decode=lambda x: x):
    split = pipeline.resident_split(scores, labels, decode=decode)
    mesh = parallel.make_mesh(devices)
    return evaluate.Evaluator(Steps(), split, mesh, batch=batch, examples=examples)


@pytest.mark.parametrize(("batch", "examples"), [(7, None), (64, 37), (360, None)])
def test_a_report_is_what_numpy_says_for_any_batch(batch, examples):
    scores, labels = _scores()
    want = _by_numpy(scores[:examples], labels[:examples])
    _assert_same(_report(scores, labels, batch, examples), want)


def test_the_scores_tell_right_from_wrong():
    # or the tests beside this one show less than they say
    want = _by_numpy(*_scores())
    assert 0.15 < want["any_time"][0] < want["any_time"][1] < want["any_time"][2] < 0.97
    assert want["accuracy"] < want["top5"] < 1 and want["ece"] > 0.02
    assert want["per_class"][ABSENT] is None and None not in want["per_class"][:ABSENT]
    assert sum(n > 0 for n in want["bins"]["count"]) > 5


def test_padding_that_were_counted_would_be_seen(monkeypatch):
    sound = pipeline.padded_batches

    def all_count(size, batch):
        for index, mask in sound(size, batch):
            yield index, np.ones_like(mask)

    monkeypatch.setattr(pipeline, "padded_batches", all_count)
    got, want = _report(*_scores()), _by_numpy(*_scores())
    assert got["count"] == 128  # all that padding is counted as
    for name in ("accuracy", "top5", "any_time", "per_class", "confusion", "bins"):
        assert got[name] != want[name], name
    for name in ("loss", "ece"):
        assert got[name] != pytest.approx(want[name], rel=1e-3), name


def test_padding_may_be_nan_in_a_report(monkeypatch):
    scores, labels = _scores()
    sound = pipeline.padded_batches
    monkeypatch.setattr(
        pipeline,
        "padded_batches",
        lambda *size_batch: (
            (np.where(mask > 0, index, SIZE), mask)
            for index, mask in sound(*size_batch)
        ),
    )
    poison = 12345.0
    poisoned = np.concatenate([scores, np.full((1, T, CLASSES), poison, np.float32)])
    decode = lambda x: jnp.where(x == poison, jnp.nan, x)  # noqa: E731
    got = _report(poisoned, np.append(labels, 0), examples=SIZE, decode=decode)
    _assert_same(got, _by_numpy(scores, labels))


def test_the_order_of_the_examples_does_not_matter():
    scores, labels = _scores()
    order = np.random.default_rng(3).permutation(SIZE)
    _assert_same(_report(scores[order], labels[order], 7), _by_numpy(scores, labels))


def test_the_last_answer_is_the_answer_and_that_of_the_training():
    scores, labels = _scores()
    split = pipeline.resident_split(scores, labels)
    evaluator = evaluate.Evaluator(Steps(), split, parallel.make_mesh(1), batch=64)
    got, cheap = evaluator.report({}), evaluator({})
    assert len(got["any_time"]) == T and got["any_time"][-1] == got["accuracy"]
    assert np.trace(got["confusion"]) / SIZE == got["accuracy"]
    for name, value in cheap.items():
        assert got[name] == pytest.approx(value, rel=1e-6), name


def test_an_answer_that_grows_is_counted_from_the_step_on_at_which_it_is_right():
    # of two classes the label is 0; the means are +1, 0 (a tie: the first), -1
    growing = np.array([[[1, 0], [-1, 0], [-3, 0]], [[-1, 0], [2, 0], [0, 0]]])
    got = _report(growing.astype(np.float32), [0, 0])
    assert got["any_time"] == [0.5, 1.0, 0.5]


def test_calibration_by_hand():
    # two classes; the confidence is that of the better one
    p = np.array([[0.75, 0.25], [0.25, 0.75], [0.62, 0.38], [0.03, 0.97]])
    got = _report(np.log(p).astype(np.float32)[:, None], [0, 0, 0, 0])
    count, accuracy = np.zeros(15, int), [None] * 15
    count[[11, 9, 14]] = 2, 1, 1  # (11/15, 12/15], (9/15, 10/15], (14/15, 1]
    accuracy[11], accuracy[9], accuracy[14] = 0.5, 1.0, 0.0
    assert got["bins"]["count"] == count.tolist()
    assert got["bins"]["accuracy"] == accuracy
    assert got["bins"]["confidence"][11] == pytest.approx(0.75)
    want = (2 * abs(0.5 - 0.75) + abs(1 - 0.62) + abs(0 - 0.97)) / 4
    assert got["ece"] == pytest.approx(want, rel=1e-5)


def test_the_upper_edge_belongs_to_a_bin():
    even = np.zeros((1, 1, 5), np.float32)  # 0.2 = 3/15
    assert _report(even, [0])["bins"]["count"].index(1) == 2
    sure = np.array([[[0, 200.0]]], np.float32)  # 1 = 15/15
    assert _report(sure, [1])["bins"]["count"].index(1) == 14


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_example_that_is_not_finite_is_named(bad):
    scores, labels = (x.copy() for x in _scores())
    evaluator = _steps(scores, labels, decode=lambda x: jnp.where(x > 9, bad, x))
    assert evaluator({})["count"] == SIZE
    scores[[70, 93], 1, 2] = 10.0
    evaluator = _steps(scores, labels, decode=lambda x: jnp.where(x > 9, bad, x))
    for score in (evaluator, evaluator.report):
        with pytest.raises(
            ValueError, match="NaN or infinity in 2 .*, the first 70, e"
        ):
            score({})


def test_labels_beyond_the_classes_are_an_error():
    scores, labels = (x.copy() for x in _scores())
    labels[[3, 5]] = CLASSES
    evaluator = _steps(scores, labels)
    for score in (evaluator, evaluator.report):
        with pytest.raises(
            ValueError, match="evaluation: got 2 labels that are no cla"
        ):
            score({})


def test_the_matrix_of_very_many_classes_is_not_counted(monkeypatch):
    scores, labels = _scores()
    want = _by_numpy(scores, labels) | {"confusion": None}
    monkeypatch.setattr(step, "CONFUSION", CLASSES - 1)
    _assert_same(_report(scores, labels), want)


def test_a_thousand_classes_are_cheap():
    classes, n = 1000, 400
    rng = np.random.default_rng(4)
    scores = rng.normal(size=(n, 1, classes)).astype(np.float32)
    labels = rng.integers(0, classes, n)
    got = _report(scores, labels, 128)
    want = np.zeros((classes, classes), int)
    np.add.at(want, (labels, scores[:, 0].argmax(1)), 1)
    np.testing.assert_array_equal(got["confusion"], want)
    assert got["per_class"].count(None) == classes - len(np.unique(labels))
    # no array is larger than the matrix: in particular none of examples x classes^2
    split = pipeline.resident_split(scores, labels)
    program = jax.make_jaxpr(step.make_report_step(Steps(), split))(
        {}, split.resident, np.arange(128), np.ones(128, np.float32)
    )
    largest = max(v.aval.size for eqn in program.eqns for v in eqn.outvars)
    assert largest == classes * classes


def test_no_count_is_lost_to_rounding():
    evaluator = _evaluator(pipeline.resident_split(np.zeros((3, 6)), [0] * 3), batch=1)
    rows = iter([(2**24, 2.0**24), (1, 1.0), (1, 1.0)])

    def score(*_):
        count, loss = next(rows)
        return {"count": jnp.int32(count), "loss": jnp.float32(loss)}

    assert np.float32(2**24) + np.float32(1) == 2**24  # as float32 would have it
    assert evaluator._sum(score, {}) == {"count": 2**24 + 2, "loss": 2.0**24 + 2}


def test_four_devices_report_what_one_does():
    code = "import test_evaluate as t; t._four_devices()"
    here = os.path.dirname(__file__)
    subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([here, *sys.path]),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_PLATFORMS": "cpu",
        },
        check=True,
        timeout=120,
    )


def _four_devices():
    scores, labels = _scores()
    assert len(jax.devices()) == 4
    _assert_same(_report(scores, labels, 6, 37, 4), _by_numpy(scores[:37], labels[:37]))
