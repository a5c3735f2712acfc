import jax
import numpy as np
import pytest

from a2os2a_jax.data import pipeline
from a2os2a_jax.data.sources import recall


def draw(split, index):
    out = jax.jit(split.gather)(split.resident, split.fetch(np.asarray(index)))
    return np.asarray(out["image"]), np.asarray(out["label"])


def rows(split, count):
    tokens, _ = draw(split, np.arange(count))
    return {row.tobytes() for row in tokens.astype(np.uint8)}


def test_description():
    data = recall.load()
    assert (data.shape, data.classes) == ((33, 43), 10)
    assert (data.train.size, data.test.size, data.validation) == (57_600, 4096, None)
    assert data.train.fresh and not data.test.fresh
    assert pipeline.steps_per_epoch(data.train.size, 64) == 900


@pytest.mark.parametrize(("keys", "values"), [(32, 10), (8, 3), (1, 1)])
def test_the_label_is_the_value_bound_to_the_key_of_the_query(keys, values):
    data = recall.load(pairs=keys, values=values)
    tokens, labels = draw(data.train, np.arange(500))
    assert tokens.shape == (500, keys + 1, keys + values + 1)
    assert labels.dtype == np.int32
    for example, label in zip(tokens, labels, strict=True):
        pairs, query = example[:keys], example[keys]
        np.testing.assert_array_equal(pairs.sum(1), 2)  # a key and a value, no flag
        np.testing.assert_array_equal(pairs[:, -1], 0)
        np.testing.assert_array_equal(pairs[:, keys:-1].sum(1), 1)
        assert sorted(pairs[:, :keys].argmax(1)) == list(range(keys))
        assert query.sum() == 2 and query[-1] == 1 and query[:keys].sum() == 1
        bound = dict(
            zip(pairs[:, :keys].argmax(1), pairs[:, keys:-1].argmax(1), strict=True)
        )
        assert bound[query[:keys].argmax()] == label


def test_keys_values_queries_and_labels_are_uniform():
    tokens, labels = draw(recall.load(pairs=4, values=5).train, np.arange(20_000))
    first_key = tokens[:, 0, :4].mean(0)
    first_value = tokens[:, 0, 4:9].mean(0)
    asked = tokens[:, 4, :4].mean(0)
    place = (tokens[:, :4, :4] * tokens[:, 4:, :4]).sum(-1).mean(0)  # of the answer
    for share, expected in [
        (first_key, 1 / 4),
        (first_value, 1 / 5),
        (asked, 1 / 4),
        (place, 1 / 4),
        (np.bincount(labels) / 20_000, 1 / 5),
    ]:
        np.testing.assert_allclose(share, expected, atol=0.015)  # 5 sigma


def test_no_example_repeats_and_the_streams_are_disjoint():
    data = recall.load(validation=2000)
    train, test, held = (
        rows(s, 10_000) for s in (data.train, data.test, data.validation)
    )
    assert (len(train), len(test), len(held)) == (10_000, 10_000, 10_000)
    assert len(train | test | held) == 30_000


def test_the_seed_changes_training_and_nothing_else():
    a, b = (recall.load(validation=50, seed=s) for s in (0, 1))
    assert len(rows(a.train, 50) | rows(b.train, 50)) == 100
    assert rows(a.test, 50) == rows(b.test, 50)
    assert rows(a.validation, 50) == rows(b.validation, 50)


def test_another_seed_is_no_other_program():
    a, b = (recall.load(seed=s).train for s in (0, 1))
    index = a.fetch(np.arange(4))
    programs = [str(jax.make_jaxpr(s.gather)(s.resident, index)) for s in (a, b)]
    assert programs[0] == programs[1]


def test_training_goes_on_with_new_examples_after_an_epoch():
    data = recall.load(train_examples=128)
    kw = {"seed": 0, "size": 128, "batch": 64, "fresh": data.train.fresh}
    steps = [pipeline.train_indices(s, **kw) for s in range(10)]
    tokens, _ = draw(data.train, np.concatenate(steps))
    assert len({t.tobytes() for t in tokens}) == 640


def test_an_example_is_the_same_alone_and_under_x64():
    split = recall.load().train
    tokens, labels = draw(split, np.arange(64))
    with jax.enable_x64(True):
        alone, label = draw(split, [17])
    np.testing.assert_array_equal(alone[0], tokens[17])
    assert label[0] == labels[17]
    assert (alone.dtype, label.dtype) == (np.float32, np.int32)


def test_classes_is_another_name_for_values():
    assert recall.load(classes=4).shape == recall.load(values=4).shape == (33, 37)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": 3, "classes": 4}, "3 values, 4 classes"),
        ({"pairs": 0}, "recall: got pairs 0, expected at least 1"),
        ({"values": 0}, "got values 0"),
        ({"test_examples": 0}, "got test_examples 0"),
        ({"validation": -1}, "got validation -1, expected at least 0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        recall.load(**options)
