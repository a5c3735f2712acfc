import numpy as np
import pytest

pytest.importorskip("matplotlib")

from a2os2a_jax.analysis import plots  # noqa: E402
from a2os2a_jax.analysis.plots import sheet  # noqa: E402


@pytest.mark.parametrize(
    "shape", [(7, 5, 5, 1), (3, 8, 6, 3), (2, 4, 6, 6, 2), (1, 6, 6, 2)]
)
def test_a_contact_sheet_is_drawn(shape, tmp_path):
    images = np.random.RandomState(0).rand(*shape)
    path = tmp_path / "figures" / "sheet.png"
    titles = [f"class {i}" for i in range(len(images))]
    assert plots.contact_sheet(images, titles, path, "what it is") == path
    assert path.read_bytes()[:4] == b"\x89PNG" and len(list(tmp_path.iterdir())) == 1


def test_events_are_white_where_nothing_happened():
    frames = np.zeros((1, 2, 2, 2), np.float32)
    frames[0, 0, 0, 0] = frames[0, 1, 1, 1] = 3
    out = sheet._pixels(frames[0], frames)
    np.testing.assert_allclose(out[0, 1], 1)
    assert out[0, 0, 0] > out[0, 0, 2] and out[1, 1, 2] > out[1, 1, 0]


def test_pixels_are_shown_as_they_are_and_others_stretched():
    grey = np.array([0.0, 0.5, 1.0, 0.25]).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(sheet._pixels(grey[0], grey), grey[0, ..., 0])
    wide = 4 * grey - 2
    np.testing.assert_allclose(sheet._pixels(wide[0], wide), grey[0, ..., 0])


@pytest.mark.parametrize(
    ("shape", "titles", "message"),
    [((2, 4, 4), 2, "contact_sheet: got"), ((2, 4, 4, 4), 2, "with 1, 2 or 3"),
     ((2, 4, 4, 1), 1, "got 1 titles for 2")],
)  # fmt: skip
def test_a_contact_sheet_of_something_else(shape, titles, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plots.contact_sheet(np.zeros(shape), ["a"] * titles, tmp_path / "x.png")
