import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from a2os2a_jax import data
from a2os2a_jax.data import catalogue, images
from a2os2a_jax.data.sources import tfds


def raw(split):
    """(images, labels) as stored."""
    return split.resident


@pytest.mark.parametrize(
    ("name", "counts", "first"),
    [
        ("cifar10", (50_000, 10_000), [7, 8, 4, 4, 6, 5, 2, 9, 6, 6]),
        pytest.param(
            *("mnist", (60_000, 10_000), [4, 1, 0, 7, 8, 1, 2, 7, 1, 6]),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("fashion_mnist", (60_000, 10_000), [2, 1, 8, 4, 1, 9, 2, 2, 0, 2]),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_known_sets_are_whole(tfds_dir, name, counts, first):
    d = data.load(name, data_dir=tfds_dir(name))
    assert (d.train.size, d.test.size) == counts and d.classes == 10
    assert raw(d.train)[1][:10].tolist() == first
    if name != "mnist":  # balanced
        for split, count in zip((d.train, d.test), counts, strict=True):
            assert (np.bincount(raw(split)[1]) == count // 10).all()
    x, known = raw(d.train)[0], catalogue.KNOWN[name]
    assert x.dtype == np.uint8 and d.shape == x.shape[1:]
    mean, std = images.statistics(x)
    np.testing.assert_allclose(mean, known.mean, atol=6e-5)
    np.testing.assert_allclose(std, known.std, atol=6e-5)
    batch = d.train.gather(d.train.resident, d.train.fetch(np.arange(256)))
    assert abs(float(batch["image"].mean())) < 0.05
    assert abs(float(batch["image"].std()) - 1) < 0.05


def test_the_first_images_of_cifar10_are_those_of_the_reader(tfds_dir):
    d = data.load("cifar10", data_dir=tfds_dir("cifar10"))
    reader = pytest.importorskip("tensorflow_datasets")
    source = reader.data_source("cifar10", split="train", data_dir=tfds_dir("cifar10"))
    for i in (0, 1, 49_999):
        np.testing.assert_array_equal(raw(d.train)[0][i], source[i]["image"])
    assert source[0]["id"] == b"train_16399"
    assert d.class_names[7] == "horse"
    np.testing.assert_allclose(
        images.statistics(raw(d.train)[0])[0],
        [0.49139968, 0.48215841, 0.44653091],  # as published; 93 pictures differ a bit
        atol=2e-6,
    )


def test_no_image_of_cifar10_is_in_both_splits(tfds_dir):
    d = data.load("cifar10", data_dir=tfds_dir("cifar10"), validation=5000)
    parts = [
        {image.tobytes() for image in raw(split)[0]}
        for split in (d.train, d.validation, d.test)
    ]
    assert [len(part) for part in parts] == [45_000, 5_000, 10_000]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert (np.bincount(raw(d.validation)[1]) == 500).all()


def test_a_cut_of_cifar100(tfds_dir):
    d = data.load("tfds:cifar100_small", data_dir=tfds_dir("cifar100_small"))
    assert (d.train.size, d.test.size, d.classes) == (3000, 600, 100)
    assert d.mean == catalogue.KNOWN["cifar100"].mean


def test_another_size_is_made_on_the_device(tfds_dir):
    how = dict(data_dir=tfds_dir("cifar100_small"))
    d = data.load("tfds:cifar100_small", size=48, **how)
    assert d.shape == (48, 48, 3) and raw(d.train)[0].shape[1:] == (32, 32, 3)
    batch = d.test.gather(d.test.resident, d.test.fetch(np.arange(2)))
    assert batch["image"].shape == (2, 48, 48, 3)


def test_pictures_of_many_sizes(tfds_dir):
    how = dict(data_dir=tfds_dir("imagenet_sample"), size=32)
    small = data.load("tfds:imagenet_sample", **how)
    assert (small.classes, small.train.size, small.train.stream) == (1000, 1000, None)
    assert "one split" in small.about
    random = data.load("tfds:imagenet_sample", area=0.3, validation=10, **how)
    assert random.train.stream is not None and random.train.resident == ()
    assert random.train.size == 990 and random.validation.size == 10
    a = small.test.gather(small.test.resident, small.test.fetch(np.arange(4)))
    b = random.test.gather((), random.test.fetch(np.arange(4)))
    np.testing.assert_allclose(a["image"], b["image"], atol=1e-6)
    assert a["label"].tolist() == b["label"].tolist()
    (batch,) = random.train.stream(lambda step: np.arange(3), 0, 1)
    assert batch["image"].shape == (3, 32, 32, 3)


def test_large_sets_are_streamed(tfds_dir, monkeypatch):
    monkeypatch.setattr(images, "RESIDENT_BYTES", 1000)
    d = data.load("tfds:cifar100_small", data_dir=tfds_dir("cifar100_small"))
    monkeypatch.undo()
    whole = data.load("tfds:cifar100_small", data_dir=tfds_dir("cifar100_small"))
    index = np.array([5, 2999])
    a = d.train.gather((), d.train.fetch(index))
    b = whole.train.gather(whole.train.resident, whole.train.fetch(index))
    np.testing.assert_allclose(a["image"], b["image"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(classes=10), "data.classes: got 10, cifar100_small has 100"),
        (dict(area=0.5), "data.area: got 0.5"),
        (dict(corrupt="some"), "data.corrupt: got 'some'"),
        (dict(validation=3000), "got 3000 examples"),
        (dict(channels=1), "data.channels: got 1, tfds:cifar100_small takes: size"),
    ],
)
def test_arguments_that_do_not_fit(tfds_dir, options, message):
    with pytest.raises(ValueError, match=message):
        data.load("tfds:cifar100_small", data_dir=tfds_dir("cifar100_small"), **options)


def test_pictures_of_many_sizes_need_one(tfds_dir):
    with pytest.raises(ValueError, match="data.size: got None.*of many sizes"):
        data.load("tfds:imagenet_sample", data_dir=tfds_dir("imagenet_sample"))


def test_recordings_are_not_pictures(tfds_dir):
    with pytest.raises(ValueError, match="nmnist_sample: got the features.*a picture"):
        data.load("tfds:nmnist_sample", data_dir=tfds_dir("nmnist_sample"))


# ---- what is not there


def test_a_missing_set_says_where_it_looked_and_how_to_make_it(tmp_path):
    with pytest.raises(ValueError) as error:
        data.load("cifar10", data_dir=str(tmp_path))
    text = str(error.value)
    assert f"found no cifar10 in {tmp_path}" in text and "\n" not in text
    assert f"data.prepare cifar10 --data_dir={tmp_path}" in text


def test_where_sets_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("A2OS2A_DATA", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", "/theirs")
    assert tfds.folder(None) == Path("/theirs")
    (tmp_path / "tfds").mkdir()
    assert tfds.folder(None) == tmp_path / "tfds"
    assert tfds.folder("/given") == Path("/given")
    monkeypatch.delenv("A2OS2A_DATA")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert tfds.folder(None) == Path.home() / "tensorflow_datasets"


def copy(source, target):
    """A tree whose files may be written."""
    for folder, _, files in os.walk(source):
        made = target / Path(folder).relative_to(source)
        made.mkdir(parents=True)
        for file in files:
            shutil.copyfile(Path(folder) / file, made / file)


def test_the_newest_version_is_taken_and_its_format_looked_at(tfds_dir, tmp_path):
    source = Path(tfds_dir("cifar100_small")) / "cifar100_small" / "1.0.0"
    copy(source, tmp_path / "cifar100_small" / "1.0.0")
    copy(source, tmp_path / "cifar100_small" / "1.0.0.incomplete")  # of a crash
    copy(source, tmp_path / "cifar100_small" / "1.10.0")
    copy(source, tmp_path / "cifar100_small" / "1.9.0")
    builder = tfds.open_builder("cifar100_small", str(tmp_path))
    assert Path(builder.data_dir).name == "1.10.0"
    path = tmp_path / "cifar100_small" / "1.10.0" / "dataset_info.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="of the format tfrecord, expected array_rec"):
        tfds.open_builder("cifar100_small", str(tmp_path))


def test_a_file_cut_short_is_an_error(tfds_dir, tmp_path):
    source = Path(tfds_dir("cifar100_small")) / "cifar100_small"
    copy(source, tmp_path / "cifar100_small")
    (path,) = (tmp_path / "cifar100_small" / "1.0.0").glob("*test*record*")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises((images.Corrupt, ValueError)):
        data.load("tfds:cifar100_small", data_dir=str(tmp_path))
