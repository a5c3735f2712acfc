import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.data import pipeline


def epoch(number, *, seed=0, size=10, batch=3):
    steps = range(number * (size // batch), (number + 1) * (size // batch))
    return np.stack(
        [pipeline.train_indices(s, seed=seed, size=size, batch=batch) for s in steps]
    )


@pytest.mark.parametrize(("size", "batch"), [(12, 3), (10, 3), (7, 7), (100, 1)])
def test_an_epoch_sees_every_example_once_less_the_incomplete_batch(size, batch):
    for number in range(3):
        order = epoch(number, size=size, batch=batch)
        assert order.shape == (pipeline.steps_per_epoch(size, batch), batch)
        assert order.dtype == np.int64
        assert np.unique(order).size == order.size == size - size % batch
        assert 0 <= order.min() and order.max() < size


def test_the_examples_left_out_change_from_epoch_to_epoch():
    seen = np.concatenate([epoch(n).ravel() for n in range(10)])
    np.testing.assert_array_equal(np.unique(seen), np.arange(10))


def test_order_is_a_function_of_seed_and_step_alone():
    forward = [pipeline.train_indices(s, seed=3, size=20, batch=4) for s in range(30)]
    pipeline._permutation.cache_clear()
    for step in reversed(range(30)):
        again = pipeline.train_indices(step, seed=3, size=20, batch=4)
        np.testing.assert_array_equal(again, forward[step])
    assert (epoch(0, size=20, seed=3) != epoch(0, size=20, seed=4)).any()
    assert (epoch(0, size=20, seed=3) != epoch(1, size=20, seed=3)).any()
    # seed and epoch are separate: (3, 1) is not (4, 0), nor their sum
    assert (epoch(1, size=20, seed=3) != epoch(0, size=20, seed=4)).any()


def test_order_is_the_same_in_every_release():
    np.testing.assert_array_equal(
        epoch(1, seed=7, size=8, batch=4), [[6, 7, 2, 3], [5, 0, 1, 4]]
    )


def test_a_cached_order_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        pipeline.train_indices(0, seed=0, size=10, batch=3)[0] = 0


def test_a_fresh_stream_counts_and_never_repeats():
    kw = {"seed": 5, "size": 10, "batch": 4, "fresh": True}
    np.testing.assert_array_equal(pipeline.train_indices(0, **kw), [0, 1, 2, 3])
    np.testing.assert_array_equal(pipeline.train_indices(9, **kw), [36, 37, 38, 39])
    far = pipeline.train_indices(2**32, **kw)
    np.testing.assert_array_equal(far, 2**34 + np.arange(4))


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (8, 4), (3, 4), (1, 1), (0, 4)])
def test_padded_batches_hold_every_index_once(size, batch):
    batches = list(pipeline.padded_batches(size, batch))
    assert len(batches) == -(-size // batch)
    seen = [i for index, mask in batches for i in index[mask == 1]]
    assert seen == list(range(size))
    for index, mask in batches:
        assert index.shape == mask.shape == (batch,)
        assert mask.dtype == np.float32
        np.testing.assert_array_equal(index[mask == 0], 0)


def test_padded_batches_by_hand():
    _, (index, mask) = pipeline.padded_batches(5, 3)
    np.testing.assert_array_equal(index, [3, 4, 0])
    np.testing.assert_array_equal(mask, [1, 1, 0])


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_resident_split_decodes_bytes_on_the_device(jit):
    images = np.arange(6, dtype=np.uint8).reshape(3, 2) * 50
    split = pipeline.resident_split(images, [7, 8, 9], decode=lambda x: x / 50 - 1)
    assert split.size == 3
    assert split.resident[0].dtype == np.uint8
    out = jit(split.gather)(split.resident, split.fetch(np.array([2, 0])))
    np.testing.assert_allclose(out["image"], [[3, 4], [-1, 0]], atol=1e-6)
    np.testing.assert_array_equal(out["label"], [9, 7])
    assert (out["image"].dtype, out["label"].dtype) == (jnp.float32, jnp.int32)


def test_host_split_keeps_the_protocol():
    x = np.arange(5 * 3).reshape(5, 3).astype(np.uint16)
    split = pipeline.host_split(x, np.arange(5), [4, 0, 2], decode=lambda v: v * 2.0)
    got = split.gather(split.resident, split.fetch(np.array([1, 1, 0])))
    np.testing.assert_array_equal(got["image"], 2 * x[[0, 0, 4]])
    assert got["label"].tolist() == [0, 0, 4] and got["label"].dtype == np.int32
    assert got["image"].dtype == np.float32 and split.size == 3
    for index, mask in pipeline.padded_batches(split.size, 2):
        assert split.fetch(index)["image"].shape == (2, 3) and mask.shape == (2,)


def test_host_split_looks_at_what_it_fetches():
    x = np.ones((5, 3), np.float32)
    x[2, 1] = np.inf
    split = pipeline.host_split(x, np.arange(5), [4, 2, 0])
    assert split.fetch(np.array([0, 2]))["label"].tolist() == [4, 0]
    with pytest.raises(ValueError, match=r"got NaN or infinity in images\[2\], expect"):
        split.fetch(np.array([0, 1]))


def by_threes(step):
    return np.array([step, step + 1, 0]) % 5


def test_host_split_streams_what_it_fetches_from_any_step(tmp_path):
    kept = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (9, 4))
    kept[:] = np.arange(36).reshape(9, 4)
    split = pipeline.host_split(kept, np.arange(9), [8, 3, 1, 0, 7])
    for first, last in ((0, 12), (7, 12), (3, 3)):  # more and fewer than are ahead
        batches = list(pipeline.feed(split, by_threes, first, last))
        assert len(batches) == last - first
        for step, batch in zip(range(first, last), batches, strict=True):
            want = split.fetch(by_threes(step))
            np.testing.assert_array_equal(batch["image"], want["image"])
            np.testing.assert_array_equal(batch["label"], want["label"])
            assert type(batch["image"]) is np.ndarray
            assert not np.may_share_memory(batch["image"], kept)


def test_host_split_gathers_ahead_and_ends_when_it_is_closed():
    asked, ahead = [], threading.Event()

    def order(step):
        asked.append((step, threading.current_thread()))
        if step == pipeline.AHEAD:
            ahead.set()
        return by_threes(step)

    split = pipeline.host_split(np.arange(5), np.arange(5), range(5))
    batches = pipeline.feed(split, order, 0, 10**9)
    assert next(batches)["label"].tolist() == [0, 1, 0]
    assert ahead.wait(10)  # with nobody asking for it
    batches.close()
    steps, threads = zip(*asked, strict=True)
    assert steps == tuple(range(pipeline.AHEAD + 1)) and len(set(threads)) == 1
    assert threads[0] is not threading.main_thread() and not threads[0].is_alive()


def test_what_goes_wrong_while_gathering_reaches_the_caller():
    split = pipeline.host_split(np.arange(5), np.arange(5), range(5))
    batches = pipeline.feed(split, lambda step: np.array([3 + step]), 0, 9)
    assert [next(batches)["label"].item() for _ in range(2)] == [3, 4]
    with pytest.raises(IndexError, match="out of bounds"):
        next(batches)


def square(index):
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), index), (3,))
    return noise, index * index


def test_generated_split_is_a_function_of_the_index_however_it_is_run():
    split = pipeline.generated_split(100, square)
    index = np.array([5, 70_000, 0])
    eager = split.gather((), split.fetch(index))
    jitted = jax.jit(split.gather)((), split.fetch(index))
    alone = split.gather((), split.fetch(index[1:2]))
    np.testing.assert_allclose(eager["image"], jitted["image"], rtol=1e-6)
    np.testing.assert_allclose(eager["image"][1:2], alone["image"], rtol=1e-6)
    assert eager["label"].dtype == jnp.int32
    np.testing.assert_array_equal(eager["label"], [25, 70_000**2 % 2**32, 0])


def test_generated_split_hands_its_numbers_to_make():
    def make(index, a, b):
        return jnp.stack([index, a, b]), index + b

    split = pipeline.generated_split(9, make, numbers=(2**32 - 1, 7))
    out = jax.jit(split.gather)(split.resident, split.fetch(np.array([3])))
    np.testing.assert_array_equal(out["image"], [[3, 2.0**32, 7]])
    assert out["label"].tolist() == [10]


def test_generated_split_refuses_to_wrap_round():
    split = pipeline.generated_split(100, square, fresh=True)
    assert split.fetch(np.array([2**32 - 1])) == 2**32 - 1
    with pytest.raises(ValueError, match="got index 4294967296"):
        split.fetch(np.array([0, 2**32]))


def test_stratified_by_hand():
    # shares of 5 in 12: 2.5, 1.67, 0.83; two are left for the largest remainders
    labels = np.repeat([4, 5, 6], [6, 4, 2])
    kept, held = pipeline.stratified(labels, 5)
    np.testing.assert_array_equal(np.bincount(labels[held])[4:], [2, 2, 1])
    np.testing.assert_array_equal(np.sort([*kept, *held]), np.arange(12))


def test_stratified_breaks_ties_by_class_and_holds_out_none_for_0():
    _, held = pipeline.stratified([0, 0, 1, 1, 2, 2], 4)
    np.testing.assert_array_equal(np.bincount(held // 2), [2, 1, 1])
    kept, held = pipeline.stratified([0, 1, 1], 0)
    assert held.size == 0
    np.testing.assert_array_equal(kept, [0, 1, 2])


def test_split_by_name():
    a, b, c = (pipeline.generated_split(n, square) for n in (1, 2, 3))
    both = pipeline.Dataset("toy", (3,), 2, train=a, test=b)
    assert both.split("train") is a
    with pytest.raises(ValueError, match="toy: got split 'validation', expected train"):
        both.split("validation")
    three = pipeline.Dataset("toy", (3,), 2, train=a, test=b, validation=c)
    assert three.split("validation") is c


@pytest.mark.parametrize("part", ["train", "test", "validation"])
def test_a_label_beyond_the_classes_is_named(part):
    x, y = np.zeros((4, 3)), np.array([0, -1, 5, 1])
    good = pipeline.resident_split(x, y % 2)
    for bad in (
        pipeline.resident_split(x, y),
        pipeline.host_split(x, y, [3, 2, 0]),
    ):
        splits = {"train": good, "test": good} | {part: bad}
        with pytest.raises(ValueError, match=f"toy: .* label 5 of {part} example 2, "):
            pipeline.Dataset("toy", (3,), 2, **splits)
        assert pipeline.Dataset("toy", (3,), 6, **splits).classes == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: pipeline.train_indices(0, seed=0, size=10, batch=64),
            "batch 64 is larger than the data: 10 examples",
        ),
        (lambda: pipeline.steps_per_epoch(10, 0), "got batch 0, expected at least 1"),
        (lambda: next(pipeline.padded_batches(4, 0)), "got batch 0"),
        (
            lambda: pipeline.stratified([0, 1], 2),
            "data.validation: got 2 examples, exp",
        ),
        (lambda: pipeline.stratified([0, 1], -1), "got -1 examples"),
        (lambda: pipeline.stratified([0], 1, key="share"), "share: got 1 examples"),
        (lambda: pipeline.resident_split([1, 2], [1]), "2 images, 1 labels"),
        (
            lambda: pipeline.resident_split([[1.0], [np.nan]], [0, 1]),
            r"resident_split: got NaN or infinity in images\[1\]",
        ),
        (
            lambda: pipeline.resident_split([1, 2], [0, 2**31]),
            r"labels\[1\] = 2147483648",
        ),
        (lambda: pipeline.resident_split([1, 2], [0.2, 1.7]), "labels float64"),
        (lambda: pipeline.host_split([1, 2], [0, -2], [0]), r"labels\[1\] = -2"),
        (
            lambda: pipeline.Dataset("toy", (3,), 2**40, train=None, test=None),
            "toy: got 1099511627776 classes, expected 1 to 1,048,576",
        ),
    ],
)
def test_errors_say_what_was_got(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- what is kept of a set, for models without their data


def test_a_spec_survives_json_and_holds_what_pictures_need():
    from a2os2a_jax import data

    for name, how, stored, crop in (
        ("fake", {"size": 8, "timesteps": 2}, None, 1.0),
        ("recall", {}, None, 1.0),
    ):
        dataset = data.load(name, **how)
        spec = dataset.spec
        text = json.dumps(spec.to_json())
        assert pipeline.Spec.from_json(json.loads(text)) == spec
        assert (spec.stored, spec.crop) == (stored, crop), name
        for key in ("name", "shape", "classes", "class_names", "mean", "std"):
            assert getattr(spec, key) == getattr(dataset, key)
    assert spec._replace(class_names=()).class_name(3) == "3"
    assert spec._replace(class_names=tuple("abcd")).class_name(3) == "d"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [8, 0, 1]}, r"got shape \(8, 0, 1\)"),
        ({"shape": "888"}, "got shape '888', expected 2 to 4 positive integers"),
        ({"shape": [8]}, r"got shape \(8,\)"),
        ({"shape": [2, 2, 8, 8, 1]}, r"got shape \(2, 2, 8, 8, 1\)"),
        ({"shape": [8, 8, True]}, r"got shape \(8, 8, True\)"),
        ({"shape": [8, [8], 1]}, r"got shape \(8, \[8\], 1\)"),
        ({"classes": "ten"}, "got classes 'ten', expected a positive integer"),
        ({"stored": [8]}, r"got stored \(8,\), expected null or 2"),
        ({"class_names": "abcdefghij"}, "got class_names 'abcdefghij', expected a"),
        ({"class_names": list(range(10))}, "expected a list of strings"),
        ({"mean": 0.5}, "got mean 0.5, expected finite numbers, 1 or 1"),
        ({"mean": ["0"]}, r"got mean \('0',\)"),
        ({"mean": [float("nan")]}, r"got mean \(nan,\)"),
        ({"shape": [8, 8, 3], "mean": [0, 0]}, r"got mean \(0, 0\), .* 1 or 3 of"),
        ({"std": []}, r"got std \(\), expected positive"),
        ({"std": [0.0]}, r"got std \(0.0,\), expected positive numbers"),
        ({"std": [float("inf")]}, r"got std \(inf,\)"),
        ({"crop": 0}, "got crop 0, expected a number above 0, up to 1"),
        ({"crop": 1.5}, "got crop 1.5"),
        ({"crop": None}, "got crop None"),
        ({"class_names": ["a"]}, "got 1 names of classes, expected 10"),
        ({"size": 3}, "differ in size"),
        ({"shape": ...}, "differ in shape"),
    ],
)
def test_a_broken_spec_is_named(change, words):
    whole = pipeline.Spec("x", (8, 8, 1), 10).to_json() | change
    broken = {k: v for k, v in whole.items() if v is not ...}
    with pytest.raises(ValueError, match=f"^d.json: .*{words}"):
        pipeline.Spec.from_json(broken, "d.json")
    with pytest.raises(ValueError, match="data.json: got 'None', expected an object"):
        pipeline.Spec.from_json(None)
