import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.image import imread  # noqa: E402

from a2os2a_jax.analysis import plots  # noqa: E402

RNG = np.random.default_rng(0)
IMAGE = RNG.random((8, 8))


def _spikes(*shape, rate=0.2):
    return (RNG.random(shape) < rate).astype(np.float32)


def _share(path, colour):
    """Share of the pixels that have exactly this colour."""
    pixels = imread(path)[..., :3]
    return (np.abs(pixels - to_rgb(colour)).max(-1) < 1 / 255).mean()


@pytest.fixture
def figures(monkeypatch):
    """The figures saved, to look inside."""
    kept, save = [], plots._save

    def keep(figure, path):
        kept.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    return kept


RECORDS = [
    {"step": 10, "epoch": 1.0, "split": "train", "loss": 2.0, "accuracy": 0.25},
    {"step": 30, "epoch": 3.0, "split": "train", "loss": 0.5, "accuracy": 0.75},
    {"step": 20, "epoch": 2.0, "split": "train", "loss": None, "accuracy": 0.5},
    {"step": 20, "epoch": 2.0, "split": "validation", "loss": 1.0, "accuracy": 0.4},
    {"step": 30, "epoch": 3.0, "split": "test", "loss": 0.6, "accuracy": 0.725},
    {"step": 30, "epoch": 3.0, "split": "other"},
]


def test_curves_show_the_records(tmp_path, figures):
    path = plots.training_curves(RECORDS, tmp_path / "figures" / "c.png", "digits")
    assert imread(path).shape == (630, 1500, 4)
    assert [p.name for p in path.parent.iterdir()] == ["c.png"]
    loss, accuracy = figures[0].axes
    train, validation, test = accuracy.lines
    np.testing.assert_array_equal(train.get_xdata(), [1, 2, 3])  # sorted
    np.testing.assert_array_equal(train.get_ydata(), [25, 50, 75])  # in percent
    np.testing.assert_array_equal(validation.get_xydata(), [[2, 40]])
    np.testing.assert_array_equal(test.get_xydata(), [[3, 72.5]])
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [2, np.nan, 0.5])
    assert accuracy.get_xlabel() == loss.get_xlabel() == "epoch"
    assert accuracy.get_ylabel() == "accuracy (%)"
    assert "test (last 72.5 %)" in [
        t.get_text() for t in accuracy.get_legend().get_texts()
    ]
    assert validation.get_marker() == "o"  # held-out is drawn as points


def test_curves_without_epochs_use_steps(tmp_path, figures):
    records = [{"step": s, "split": "train", "loss": 1 / s} for s in (1, 2)]
    plots.training_curves(records, tmp_path / "c.png")
    assert figures[0].axes[0].get_xlabel() == "step"
    assert not figures[0].axes[1].lines


def test_curves_without_records_say_so(tmp_path):
    with pytest.raises(ValueError, match="got 1 records, expected some with split in"):
        plots.training_curves([{"step": 1, "split": "other"}], tmp_path / "c.png")
    assert not list(tmp_path.iterdir())


def test_raster_of_a_real_shape(tmp_path, figures):
    v = _spikes(4, 16, 96) * RNG.choice([-1, 1], (4, 16, 96))
    layers = {
        "stem/neuron_0": _spikes(4, 8, 8, 12),
        "block_0/attention/v": v,
        "block_0/mlp": _spikes(4, 16, 384),
        "head": _spikes(4, 10),
    }
    path = plots.spike_raster(layers, IMAGE, tmp_path / "s.png", 3, 5)
    figure = figures[0]
    # the image, four timesteps a layer, and a place map where positions form a square
    assert len(figure.axes) == 1 + 4 * 4 + 3
    texts = [t.get_text() for t in figure.texts]
    assert (
        f"stem/neuron_0\n8×8×12 · {100 * layers['stem/neuron_0'].mean():.1f} %" in texts
    )
    assert any("label: 3\npredicted: 5" in t for t in texts)
    plus, minus = 100 * (v > 0).mean(), 100 * (v < 0).mean()
    assert any(f"(+{plus:.1f} %, −{minus:.1f} %)" in t for t in texts)
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == ["spike", "spike +1", "spike −1", "silent"]
    maps = [np.asarray(a.images[0].get_array()) for a in figure.axes[1:] if a.images]
    assert max(m.shape[0] for m in maps) <= 24 and max(m.shape[1] for m in maps) <= 60
    _inside_and_apart(figure)
    assert _share(path, plots._PLUS) > 1e-3 and _share(path, plots._MINUS) > 1e-3


def _inside_and_apart(figure):
    """No text leaves the figure, none lies on another or on a map."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [t.get_window_extent(renderer) for t in figure.texts]
    boxes.append(figure.legends[0].get_window_extent(renderer))
    maps = [a.get_window_extent(renderer) for a in figure.axes]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :] + maps)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_nothing_overlaps(tmp_path, figures, count):
    layers = {
        f"block_{i}/attention/a_rather_long_name": _spikes(4, 16, 8, rate=0.3) - (i % 2)
        for i in range(count)
    }
    names = ["automobile", "bird"]
    plots.spike_raster(layers, IMAGE, tmp_path / "s.png", 0, 1, names)
    _inside_and_apart(figures[0])


def test_a_spike_is_drawn_where_and_when_it_happens(tmp_path, figures):
    s = np.zeros((2, 4, 4, 3))
    s[1, 2, 3, 1] = 1
    path = plots.spike_raster({"n": s}, IMAGE, tmp_path / "s.png", 0, 0)
    _, first, second, where = figures[0].axes
    assert not np.asarray(first.images[0].get_array()).any()
    assert np.argwhere(second.images[0].get_array()).tolist() == [[2 * 4 + 3, 1]]
    assert np.argwhere(where.images[0].get_array()).tolist() == [[2, 3]]
    assert _share(path, plots._PLUS) == _share(path, plots._MINUS) == 0  # binary


def test_a_silent_layer_and_images_of_any_channels(tmp_path):
    for i, shape in enumerate([(8, 8, 1), (8, 8, 2), (8, 8, 3)]):
        path = tmp_path / f"{i}.png"
        plots.spike_raster({"n": np.zeros((4, 16, 8))}, np.ones(shape), path, 0, 0)
        assert path.exists()


def test_raster_errors(tmp_path):
    path = tmp_path / "s.png"
    with pytest.raises(ValueError, match=r"timesteps \[\], expected"):
        plots.spike_raster({}, IMAGE, path, 0, 0)
    with pytest.raises(ValueError, match=r"timesteps \[2, 4\], expected"):
        layers = {"a": _spikes(2, 5), "b": _spikes(4, 5)}
        plots.spike_raster(layers, IMAGE, path, 0, 0)
    with pytest.raises(ValueError, match=r"a has shape \(4,\), expected"):
        plots.spike_raster({"a": np.zeros(4)}, IMAGE, path, 0, 0)
    with pytest.raises(ValueError, match=r"image has shape \(8,\), expected"):
        plots.spike_raster({"a": _spikes(4, 5)}, np.zeros(8), path, 0, 0)
    assert not list(tmp_path.iterdir())


# --- of an evaluation

COUNTS = np.array([[8, 2, 0], [0, 5, 0], [1, 0, 0]])


def test_confusion_shows_every_count_where_it_belongs(tmp_path, figures):
    path = plots.confusion(COUNTS, tmp_path / "f" / "c.png", "abc", "digits, test")
    assert [p.name for p in path.parent.iterdir()] == ["c.png"]
    (axis,) = figures[0].axes
    shown = {t.get_position(): t.get_text() for t in axis.texts}  # (column, row)
    assert shown == {(0, 0): "8", (1, 0): "2", (1, 1): "5", (0, 2): "1"}
    right, wrong = (image.get_array() for image in axis.images)
    np.testing.assert_allclose(right[[0, 1], [0, 1]], [np.sqrt(0.8), 1])
    assert right.mask[0, 1] and right.mask[2, 2]  # wrong, and none
    np.testing.assert_allclose(wrong[0, 1], np.sqrt(0.2))
    assert wrong.mask[0, 0] and wrong.mask[1, 2]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["a", "b", "c"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "label")
    assert axis.get_title() == "digits, test\n13 of 16 right"
    pixels = imread(path)[..., :3]
    blue = pixels[..., 2] > pixels[..., 0] + 0.2
    orange = pixels[..., 0] > pixels[..., 2] + 0.2
    assert blue.mean() > 0.02 and orange.mean() > 0.02


@pytest.mark.parametrize("classes", [1, 21, 100])
def test_confusion_of_any_number_of_classes_is_legible(tmp_path, figures, classes):
    names = [f"class number {i}" for i in range(classes)]
    path = plots.confusion(np.eye(classes, dtype=int), tmp_path / "c.png", names)
    assert max(imread(path).shape) < 2200
    figure = figures[0]
    figure.canvas.draw()
    renderer, (axis,) = figure.canvas.get_renderer(), figure.axes
    for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert min(40, classes) // 2 <= len(ticks) <= 40
        boxes = [t.get_window_extent(renderer) for t in ticks]
        assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))
        assert all(figure.bbox.x0 <= b.x0 and figure.bbox.y0 <= b.y0 for b in boxes)


BINS = {
    "count": [0, 1, 3],
    "accuracy": [None, 1.0, 1 / 3],
    "confidence": [None, 0.5, 0.9],
}


def test_reliability_shows_bins_and_their_error(tmp_path, figures):
    path = plots.reliability(BINS, tmp_path / "r.png", "digits, test")
    above, below = figures[0].axes
    bars = [(p.get_x(), p.get_width(), p.get_height()) for p in above.patches]
    np.testing.assert_allclose(
        bars, [[100 / 3, 100 / 3, 100], [200 / 3, 100 / 3, 100 / 3]]
    )
    diagonal, points = above.lines
    np.testing.assert_allclose(diagonal.get_xydata(), [[0, 0], [100, 100]])
    np.testing.assert_allclose(points.get_xydata(), [[50, 100], [90, 100 / 3]])
    np.testing.assert_allclose([p.get_height() for p in below.patches], [0, 25, 75])
    ece = 25 * 0.5 + 75 * (0.9 - 1 / 3)
    assert above.get_title() == f"digits, test\nexpected calibration error {ece:.2f} %"
    assert _share(path, plots._BLUE) > 0.02


def test_any_time_shows_every_step(tmp_path, figures):
    plots.any_time([0.5, 0.75, 1.0], tmp_path / "a.png", "digits")
    plots.any_time(np.linspace(0, 1, 40), tmp_path / "b.png")
    plots.any_time([0.5], tmp_path / "c.png")
    few, many, one = (figure.axes[0] for figure in figures)
    np.testing.assert_allclose(few.lines[0].get_xydata(), [[1, 50], [2, 75], [3, 100]])
    assert [t.get_text() for t in few.texts] == ["50.0", "75.0", "100.0"]
    assert len(many.lines[0].get_xdata()) == 40 and len(many.texts) == 8
    assert few.get_title() == "digits" and len(one.texts) == 1
    for axis in (few, many, one):
        assert all(float(x).is_integer() for x in axis.get_xticks())


def test_figures_of_nothing_are_errors(tmp_path):
    path = tmp_path / "f.png"
    with pytest.raises(ValueError, match=r"confusion: got counts \(2, 3\) and 2 names"):
        plots.confusion(np.ones((2, 3)), path)
    with pytest.raises(ValueError, match=r"got counts \(3, 3\) and 2 names, expected"):
        plots.confusion(COUNTS, path, ["a", "b"])
    empty = {"count": [0], "accuracy": [None], "confidence": [None]}
    with pytest.raises(ValueError, match="reliability: got 1 counts of 0 examples"):
        plots.reliability(empty, path)
    with pytest.raises(ValueError, match="2 accuracies, 3 confidences"):
        plots.reliability(BINS | {"accuracy": [1.0, 1.0]}, path)
    with pytest.raises(ValueError, match="any_time: got no accuracies"):
        plots.any_time([], path)
    assert not list(tmp_path.iterdir())


def test_importing_the_module_does_not_import_matplotlib():
    code = (
        "import sys, a2os2a_jax.analysis.plots; assert 'matplotlib' not in sys.modules"
    )
    env = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)


# ---- contact sheets


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
    out = plots._pixels(frames[0], frames)
    np.testing.assert_allclose(out[0, 1], 1)
    assert out[0, 0, 0] > out[0, 0, 2] and out[1, 1, 2] > out[1, 1, 0]


def test_pixels_are_shown_as_they_are_and_others_stretched():
    grey = np.array([0.0, 0.5, 1.0, 0.25]).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(plots._pixels(grey[0], grey), grey[0, ..., 0])
    wide = 4 * grey - 2
    np.testing.assert_allclose(plots._pixels(wide[0], wide), grey[0, ..., 0])


@pytest.mark.parametrize(
    ("shape", "titles", "message"),
    [((2, 4, 4), 2, "contact_sheet: got"), ((2, 4, 4, 4), 2, "with 1, 2 or 3"),
     ((2, 4, 4, 1), 1, "got 1 titles for 2")],
)  # fmt: skip
def test_a_contact_sheet_of_something_else(shape, titles, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plots.contact_sheet(np.zeros(shape), ["a"] * titles, tmp_path / "x.png")
