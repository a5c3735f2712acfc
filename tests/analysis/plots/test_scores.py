import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.image import imread  # noqa: E402

from a2os2a_jax.analysis import plots  # noqa: E402
from a2os2a_jax.analysis.plots import base  # noqa: E402

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


def test_reliability_shows_bins_and_their_error(tmp_path, figures, share):
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
    assert share(path, base.BLUE) > 0.02


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


def test_any_time_shows_what_one_example_is(tmp_path, figures):
    plots.any_time([0.5, 0.75], tmp_path / "a.png", count=20)
    plots.any_time([1.0], tmp_path / "b.png", count=1)
    plots.any_time([0.5, 0.75], tmp_path / "c.png")
    some, one, unknown = (figure.axes[0] for figure in figures)
    assert some.get_ylabel() == "accuracy of 20 examples (%)"
    assert unknown.get_ylabel() == "accuracy (%)" and not unknown.collections
    (band,) = some.collections
    edges = band.get_paths()[0].vertices
    for step, y in ((1, 50), (2, 75)):
        np.testing.assert_allclose(
            sorted(set(edges[edges[:, 0] == step][:, 1].round(9))), [y - 5, y + 5]
        )
    (label,) = some.get_legend().get_texts()
    assert label.get_text() == "± one example"
    assert one.get_ylim()[1] <= 104


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
    with pytest.raises(ValueError, match="any_time: got 0 examples, expected >= 1"):
        plots.any_time([0.5], path, count=0)
    assert not list(tmp_path.iterdir())
