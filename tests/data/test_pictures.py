import io

import jax
import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image  # noqa: E402

from a2os2a_jax import data  # noqa: E402
from a2os2a_jax.data import images, pictures, pipeline, tree  # noqa: E402
from tests import forged  # noqa: E402


def test_pictures_of_a_folder_are_what_its_evaluation_sees(tmp_path):
    forged.pictures(tmp_path)
    dataset = data.load(f"folder:{tmp_path}", size=8)
    spec, split = dataset.spec, dataset.test
    assert (spec.crop, spec.stored) == (images.CENTRE, None)
    found = pictures.files(tmp_path / "test")
    assert [p.parent.name for p in found[::3]] == list(forged.NAMES)
    pixels = np.stack([pictures.read(path, spec) for path in found])
    np.testing.assert_array_equal(pixels, split.resident[0])
    want = split.gather(split.resident, split.fetch(np.arange(split.size)))["image"]
    np.testing.assert_allclose(pictures.inputs(spec)(pixels), want, atol=1e-6)
    # a crop of another size would be another picture
    other = pictures.read(found[0], spec._replace(crop=1.0))
    assert np.abs(other.astype(int) - pixels[0]).max() > 5


def test_pictures_of_the_stored_size_are_all_seen_and_enlarged(tmp_path):
    x, y = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)), np.arange(4) % 2
    arrays = dict(x_train=np.uint8(x), x_test=np.uint8(x[:2]), y_train=y, y_test=y[:2])
    np.savez(tmp_path / "set.npz", **arrays)
    dataset = data.load(f"npz:{tmp_path / 'set.npz'}", size=12)
    spec, split = dataset.spec, dataset.test
    assert (spec.crop, spec.stored, spec.shape) == (1.0, (8, 8), (12, 12, 1))
    want = split.gather(split.resident, split.fetch(np.arange(2)))["image"]
    got = []
    for i, pixels in enumerate(arrays["x_test"]):
        Image.fromarray(pixels[..., 0]).save(tmp_path / f"{i}.png")
        got.append(pictures.read(tmp_path / f"{i}.png", spec))
        np.testing.assert_array_equal(got[-1], pixels)
    seen = jax.jit(pictures.inputs(spec))(np.stack(got))
    np.testing.assert_allclose(seen, want, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (31, 17)])
def test_grey_colour_alpha_and_any_size_are_taken(tmp_path, mode, channels, size):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(np.uint8(rng.integers(0, 256, (*size[::-1], 3))))
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.convert(mode).save(path)
    spec = pipeline.Spec("x", (8, 8, channels), 2)
    pixels = pictures.read(path, spec)
    assert pixels.shape == (8, 8, channels) and pixels.dtype == np.uint8
    if size == (8, 8) and mode == "RGB" and channels == 3:
        np.testing.assert_array_equal(pixels, np.asarray(picture))
    assert np.ptp(pixels) > 20


def test_what_cannot_be_read_is_named(tmp_path):
    spec, buffer = pipeline.Spec("x", (8, 8, 1), 2), io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40))
    Image.fromarray(np.uint8(noise)).save(buffer, "PNG")
    cases = {
        "no.png": (b"no", "not a whole picture"),
        "half.png": (buffer.getvalue()[:900], "not a whole picture"),
        "deep.png": (None, "16 bits"),
    }
    for name, (content, words) in cases.items():
        if content is None:
            Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(images.Corrupt, match=f"{name}: .*{words}"):
            pictures.read(tmp_path / name, spec)


def test_files_are_sorted_and_hidden_ones_left_out(tmp_path):
    for name in ("b/2.JPG", "a.png", "b/1.jpeg", ".hidden/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [p.relative_to(tmp_path).as_posix() for p in pictures.files(tmp_path)]
    assert found == ["a.png", "b/1.jpeg", "b/2.JPG"]
    assert pictures.files(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    with pytest.raises(ValueError, match="found no file or folder .*nowhere"):
        pictures.files(tmp_path / "nowhere")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.gif").touch()
    with pytest.raises(ValueError, match="no picture among 1 files, expected .jpg"):
        pictures.files(tmp_path / "c")


def test_figures_of_earlier_answers_are_no_pictures(tmp_path):
    for name in ("a.png", "answers/a.png", "answers/predictions.json", "b/answers.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [p.relative_to(tmp_path).as_posix() for p in pictures.files(tmp_path)]
    assert found == ["a.png", "b/answers.png"]
    with pytest.raises(ValueError, match="among 2 files but figures of predictions,"):
        pictures.files(tmp_path / "answers")
    # one that is named is taken
    assert pictures.files(tmp_path / "answers" / "a.png")


def test_links_that_lead_nowhere_are_unreadable_pictures(tmp_path):
    (tmp_path / "b.png").touch()
    for name in ("a.png", "c.txt", ".d.png"):
        (tmp_path / name).symlink_to(tmp_path / "gone")
    (tmp_path / "e.png").symlink_to("b.png")
    found = pictures.files(tmp_path)
    assert [p.name for p in found] == ["a.png", "b.png", "e.png"]
    with pytest.raises(images.Corrupt, match="a.png: a link that leads nowhere"):
        pictures.read(found[0], pipeline.Spec("x", (8, 8, 1), 2))
    # training counts them
    assert [p.name for p in pipeline.files_below(tmp_path)] == ["b.png", "e.png"]


@pytest.mark.parametrize(
    ("shape", "words"),
    [((5, 6), "tokens"), ((2, 8, 8, 2), "frames"), ((8, 8, 2), "got 2 channels")],
)
def test_models_of_other_things_take_no_pictures(shape, words):
    with pytest.raises(ValueError, match=f"--image: some.*{words}"):
        pictures.check(pipeline.Spec("some", shape, 2))


def test_an_inverted_picture_is_noticed_where_grey_ones_are_dark():
    bright, dark = np.full((8, 8, 1), 200, np.uint8), np.full((8, 8, 1), 40, np.uint8)
    digits = pipeline.Spec("digits", (8, 8, 1), 10, mean=(0.3,), std=(0.4,))
    assert pictures.is_inverted(bright, digits)
    assert not pictures.is_inverted(dark, digits)
    for mean in ((0.0,), (0.6,), (0.3, 0.3, 0.3)):
        assert not pictures.is_inverted(bright, digits._replace(mean=mean))


def test_pictures_are_found_through_links_and_never_in_litter(tmp_path):
    for name in (
        "in/a.png",
        "in/@eaDir/a.png/thumb.png",
        "__MACOSX/b.png",
        "more/c.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "more")
    found = [
        p.relative_to(tmp_path).as_posix() for p in pictures.files(tmp_path / "in")
    ]
    assert found == ["in/a.png", "in/linked/c.png"]
    (tmp_path / "more" / "again").symlink_to(tmp_path / "in")
    with pytest.raises(ValueError, match="linked/again: got a link to"):
        pictures.files(tmp_path / "in")


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "a.png").touch()
    level = tree.level

    def denied(folder):
        if folder.name == "in":
            raise PermissionError(13, "Permission denied", str(folder))
        return level(folder)

    monkeypatch.setattr(tree, "level", denied)
    assert [p.name for p in pictures.files(tmp_path)] == ["a.png", "in"]
    with pytest.raises(images.Corrupt, match="in: "):
        pictures.read(tmp_path / "in", pipeline.Spec("x", (8, 8, 1), 2))
