import dataclasses
import io
import struct
import zlib

import jax
import numpy as np
import pytest

from a2os2a_jax.data import images

RNG = np.random.RandomState


class Made:
    """Records from a list of (image, label)."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return images.Record(*self.rows[index])

    def name(self, index):
        return f"row {index}"


def noise(seed, *shape):
    return RNG(seed).randint(0, 256, shape).astype(np.uint8)


def tiff(mode, side):
    """A picture of a mode of Pillow's."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(noise(1, side, side, 3)).convert(mode).save(file, "TIFF")
    return file.getvalue()


EXACT = images.Target(4, 3, 10, (4, 4))
FREE = images.Target(8, 3, 10)


@pytest.fixture(scope="module")
def rows(encode):
    return [(encode(noise(i, 4, 4, 3)), i % 10) for i in range(12)]


@pytest.fixture(scope="module")
def broken(rows, encode):
    """Nine that are whole; 2 is cut, 5 too large, 7 has a label out of range."""
    rows = list(rows)
    rows[2] = (rows[2][0][:60], 2)
    rows[5] = (encode(noise(5, 4, 6, 3)), 5)
    rows[7] = (rows[7][0], 10)
    return Made(rows)


def test_what_is_stored_is_what_comes_out(rows):
    x, y = images.decode_all(Made(rows), EXACT, what="made")
    np.testing.assert_array_equal(x, [noise(i, 4, 4, 3) for i in range(12)])
    assert (x.dtype, y.dtype, y.tolist()) == (np.uint8, np.int32, [*range(10), 0, 1])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (2, "row 2: not a whole picture"),
        (5, "row 5: got 4x6 pixels, expected 4x4"),
        (7, "row 7: got label 10, expected 0 to 9"),
    ],
)
def test_what_cannot_be_read_is_named(broken, index, message):
    with pytest.raises(images.Corrupt, match=message):
        images.example(broken, index, EXACT, None)


def test_the_first_that_cannot_be_read_stops_it(broken):
    with pytest.raises(images.Corrupt, match="made: row 2.*data.corrupt=skip"):
        images.decode_all(broken, EXACT, what="made")


def test_what_is_left_out_is_counted_and_named(broken, capsys):
    x, y = images.decode_all(broken, EXACT, what="made", corrupt="skip")
    assert y.tolist() == [0, 1, 3, 4, 6, 8, 9, 0, 1]
    np.testing.assert_array_equal(x[2], noise(3, 4, 4, 3))
    err = capsys.readouterr().err
    assert "row 2" in err and "row 5" in err and "row 7" in err
    assert "made: 3 of 12 records left out" in err


def test_many_that_are_left_out_are_not_all_named(capsys):
    made = Made([(b"", 0)] * 40 + [(noise(0, 4, 4, 3), 1)])
    images.decode_all(made, EXACT, what="made", corrupt="skip")
    err = capsys.readouterr().err
    assert err.count("\n") < 10 and "40 of 41 records" in err
    assert "BytesIO" not in err


def test_what_a_stream_leaves_out_is_counted_aloud(capsys):
    skipped = images.Skipped("made", "skip")
    for i in range(1001):
        for _ in range(2):  # a record counts once
            skipped.note(i, images.Corrupt(f"row {i}: lost"))
    assert capsys.readouterr().err.splitlines() == [
        *(f"made: left out row {i}: lost" for i in range(5)),
        "made: left out more, unnamed",
        "made: 10 records left out so far",
        "made: 100 records left out so far",
        "made: 1,000 records left out so far",
    ]


def test_stored_labels_are_told_of_what_cannot_be_read(broken):
    _, labels, readable = images.decode(broken, EXACT, what="made", corrupt="skip")
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 10, 8, 9, 0, 1]
    assert np.flatnonzero(~readable).tolist() == [2, 5, 7]


def test_nothing_readable_is_an_error():
    with pytest.raises(ValueError, match="made: got no readable example of 2"):
        images.decode_all(Made([(b"x", 0)] * 2), EXACT, what="made", corrupt="skip")


@pytest.mark.parametrize("cut", [0, 1, 30, -1, -12])
def test_every_cut_of_a_jpeg_is_found(encode, cut):
    whole = encode(noise(0, 40, 40, 3), "JPEG")
    images.open_image(whole, 3)
    with pytest.raises(images.Corrupt):
        images.open_image(whole[:cut], 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_many_sizes_are_converted(mode, channels):
    target = dataclasses.replace(FREE, channels=channels)
    x, _ = images.example(Made([(tiff(mode, 9), 0)]), 0, target, None)
    assert x.shape == (8, 8, channels) and x.std() > 5


@pytest.mark.parametrize(
    ("mode", "stored"), [("L", 1), ("RGBA", 4), ("P", 3), ("CMYK", 4), ("RGB", 3)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_wrong_channels_are_found_in_a_set_of_one_size(mode, stored, channels):
    target = dataclasses.replace(EXACT, channels=channels)
    made = Made([(tiff(mode, 4), 0)])
    if stored == channels:
        x, _ = images.example(made, 0, target, None)
        assert x.shape == (4, 4, channels)
    else:
        message = f"row 0: got {stored} channels, expected {channels}"
        with pytest.raises(images.Corrupt, match=message):
            images.example(made, 0, target, None)


@pytest.mark.parametrize("target", [EXACT, FREE])
def test_more_than_a_byte_is_not_clipped(target):
    from PIL import Image

    deep = np.full((4, 4), 40_000)
    for pixels in (deep.astype(np.uint16), deep.astype(np.int32)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "TIFF")
        with pytest.raises(images.Corrupt, match="row 0: got a picture of 16 bits"):
            images.example(Made([(file.getvalue(), 0)]), 0, target, None)
    floats = deep[:, :, None].astype(np.float32)
    with pytest.raises(images.Corrupt, match="row 0: got a picture of 16 bits"):
        images.example(Made([(floats, 0)]), 0, target, None)


def png(colour, bits, rows):
    """A PNG by the letter: colour type 0 is grey, 2 is RGB; rows of a square."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">IIBBBBB", len(rows), len(rows), bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))  # 0: no filter
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("target", [EXACT, FREE])
@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_a_deep_png_is_not_reduced(target, colour, channels):
    deep = png(colour, 16, [struct.pack(">H", 40_001) * 4 * channels] * 4)
    with pytest.raises(images.Corrupt, match="row 0: got a picture of 16 bits"):
        images.example(Made([(deep, 0)]), 0, target, None)
    flat = png(colour, 8, [b"\x9c" * 4 * channels] * 4)
    assert np.asarray(images.open_image(flat, 1)).min() == 0x9C
    bits = png(0, 1, [b"\xf0"] * 4)
    assert np.asarray(images.open_image(bits, 1)).min() == 255


def test_one_of_five_is_held_out():
    labels = np.arange(43) % 3
    train, test = images.hold_out(labels, "made")
    assert sorted([*train, *test]) == list(range(43))
    assert np.bincount(labels[test]).tolist() == [3, 3, 2]
    np.testing.assert_array_equal(images.hold_out(labels, "other")[1], test)
    with pytest.raises(ValueError, match="made: got 4 pictures, expected at least 5"):
        images.hold_out(labels[:4], "made")


def test_channels_that_are_no_picture():
    images.check_channels("made", 1)
    with pytest.raises(ValueError, match="made: got 4 channels, expected 1 or 3"):
        images.check_channels("made", 4)


def test_evaluation_sees_the_middle():
    left, top, right, bottom = images.centre_box(80, 160)
    assert (right - left, bottom - top) == (70, 70)
    assert (left + right, top + bottom) == (160, 80)
    picture = np.zeros((80, 160, 3), np.uint8)
    picture[10:70, 50:110] = 255  # inside the box everywhere but at its border
    x, _ = images.example(Made([(picture, 0)]), 0, FREE, None)
    assert x[1:-1, 1:-1].min() == 255


def test_random_parts_have_the_law_they_claim():
    share, aspect = [], []
    for i in range(4000):
        draws = images.crop_draws(0, 3, i)
        left, top, right, bottom = images.random_box(draws, 300, 400, 0.08)
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        share.append((right - left) * (bottom - top) / 120_000)
        aspect.append(np.log((right - left) / (bottom - top)))
    # large parts fit less often, so the mean lies below that of [0.08, 1]
    assert 0.40 < np.mean(share) < 0.47 and min(share) > 0.075 and max(share) > 0.9
    assert abs(np.mean(aspect)) < 0.05 and np.abs(aspect).max() < np.log(4 / 3) + 0.03


def test_a_picture_too_flat_gives_its_middle():
    draws = images.crop_draws(0, 0, 0)
    assert images.random_box(draws, 10, 1000, 1.0) == (493, 0, 506, 10)
    assert images.random_box(draws, 1000, 10, 1.0) == (0, 493, 10, 506)


def test_draws_are_a_function_of_seed_step_and_index_and_stay_so():
    each = [images.crop_draws(*x) for x in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({x.tobytes() for x in each}) == 4
    np.testing.assert_array_equal(images.crop_draws(0, 1, 0), each[2])
    # what Philox-4x64 gives, by its authors' definition, whatever release of numpy
    words = [int(x * 2**53) for x in images.crop_draws(2503, 226, 7)[0]]
    assert words == [
        8620507273776675,
        348554198962780,
        2587054003812337,
        4686631733694971,
    ]
    every = np.stack([images.crop_draws(5, 6, i) for i in range(2000)])
    assert every.min() >= 0 and every.max() < 1 and abs(every.mean() - 0.5) < 0.005
    neighbours = np.corrcoef(every[:-1, 0, 0], every[1:, 0, 0])[0, 1]
    assert abs(neighbours) < 0.1


def test_statistics_by_hand():
    x = np.array([[0, 255], [255, 255]], np.uint8).reshape(2, 1, 1, 2)
    mean, std = images.statistics(x)
    np.testing.assert_allclose(mean, [0.5, 1.0])
    np.testing.assert_allclose(std, [0.5, 1.0])  # none is 1: constant channels stay


def test_normalising_on_the_device():
    x = noise(0, 5, 4, 4, 3)
    out = jax.jit(images.normaliser((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), 4))(x)
    expected = (x / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    np.testing.assert_allclose(out, expected, atol=1e-5)
    flat = np.full((1, 4, 4, 1), 51, np.uint8)
    out = images.normaliser((0.0,), (1.0,), 12)(flat)
    np.testing.assert_allclose(out, np.full((1, 12, 12, 1), 0.2), atol=1e-6)


def keep(x):
    return x.astype(np.float32)


def test_a_streamed_split_gives_what_a_resident_one_gives(rows):
    split = images.streamed(Made(rows), EXACT, keep, what="made")
    x, y = images.decode_all(Made(rows), EXACT, what="made")
    out = split.gather((), split.fetch(np.array([3, 0, 11])))
    np.testing.assert_array_equal(out["image"], x[[3, 0, 11]])
    np.testing.assert_array_equal(out["label"], y[[3, 0, 11]])
    assert split.stream is None


def test_evaluation_marks_what_it_cannot_read(broken, capsys):
    split = images.streamed(broken, EXACT, keep, what="made", corrupt="skip")
    for _ in range(2):
        out = split.fetch(np.arange(12))
        assert out["label"].tolist() == [0, 1, -1, 3, 4, -1, 6, -1, 8, 9, 0, 1]
    assert capsys.readouterr().err.count("row 2") == 1  # said once
    with pytest.raises(images.Corrupt, match="row 5"):
        images.streamed(broken, EXACT, keep, what="made").fetch(np.array([5]))


def test_what_evaluation_cannot_read_has_the_shape_of_the_others(rows):
    target = dataclasses.replace(EXACT, size=8)  # which is made on the device
    made = Made([rows[0], (b"", 1)])
    split = images.streamed(made, target, keep, what="made", corrupt="skip")
    batch = split.fetch(np.arange(2))
    assert batch["image"].shape == (2, 4, 4, 3) and batch["label"].tolist() == [0, -1]


def test_training_takes_the_next_that_can_be_read(broken):
    how = dict(what="made", corrupt="skip", train=True)
    split = images.streamed(broken, EXACT, keep, **how)
    (batch,) = split.stream(lambda step: np.array([2, 7, 1]), 0, 1)
    assert batch["label"].tolist() == [3, 8, 1]


def test_training_ends_where_nothing_can_be_read():
    made = Made([(b"", 0)] * 3)
    how = dict(what="made", corrupt="skip", train=True)
    split = images.streamed(made, EXACT, keep, **how)
    with pytest.raises(ValueError, match="no readable example of 3"):
        list(split.stream(lambda step: np.array([1]), 0, 1))


def test_crops_are_a_function_of_seed_step_and_index(encode):
    made = Made([(encode(noise(i, 40, 50, 3)), i) for i in range(4)])
    target = dataclasses.replace(FREE, area=0.08)

    def stream(seed, first, last):
        how = dict(what="made", train=True, seed=seed)
        split = images.streamed(made, target, keep, **how)
        return list(split.stream(lambda step: np.array([step % 4, 1]), first, last))

    run, later = stream(0, 0, 6), stream(0, 4, 6)
    for a, b in zip(run[4:], later, strict=True):  # resumed at step 4
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])
    assert [row["label"].tolist() for row in run] == [[s % 4, 1] for s in range(6)]
    assert (run[0]["image"][1] != run[2]["image"][1]).any()  # another step
    assert (run[0]["image"] != stream(1, 0, 1)[0]["image"]).any()  # another seed
    np.testing.assert_array_equal(run[1]["image"][0], run[1]["image"][1])


def test_another_way_to_meet_what_is_broken_is_refused():
    with pytest.raises(ValueError, match="data.corrupt: got 'ignore', expected error"):
        images.check_corrupt("ignore")
