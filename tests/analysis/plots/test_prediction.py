import numpy as np
import pytest

pytest.importorskip("matplotlib")
from a2os2a_jax.analysis import plots  # noqa: E402
from a2os2a_jax.analysis.plots import base  # noqa: E402


def example(t=3, layers=2, classes=7, channels=3):
    rng = np.random.default_rng(0)
    spikes = {
        f"block_{i}/v_neuron": np.sign(np.round(rng.normal(size=(t, 16, 8))))
        for i in range(layers)
    }
    spikes["head_neuron"] = np.float32(rng.random((t, 8)) > 0.5)
    p = rng.dirichlet(np.ones(classes), t)
    pixels = np.uint8(rng.integers(0, 256, (8, 8, channels)))
    names = [f"class number {i} with a name that is long" for i in range(classes)]
    return pixels, spikes, p, names


@pytest.mark.parametrize(
    ("t", "layers", "classes", "channels", "sure"),
    [(1, 1, 1, 1, 0), (3, 2, 7, 3, 0), (12, 30, 3, 1, 0), (2, 1, 4, 1, 0.95)],
)
def test_nothing_overlaps_or_leaves_the_figure(
    t, layers, classes, channels, sure, monkeypatch
):
    kept = []
    monkeypatch.setattr(base, "save", lambda figure, path: kept.append(figure) or path)
    pixels, spikes, p, names = example(t, layers, classes, channels)
    p = sure * np.eye(classes)[0] + (1 - sure) * p
    title = "a_picture_with_a_long_name.jpg; a model, trained on some data"
    plots.prediction(
        pixels, spikes, p, names, "x.png", probabilities=p[-1], title=title
    )
    (figure,) = kept
    figure.draw_without_rendering()
    draw = figure.canvas.get_renderer()
    whole = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent(draw)) for text in figure.texts]
    boxes += [("axes", axis.get_tightbbox(draw)) for axis in figure.axes]
    for name, box in boxes:
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1, name
        assert whole.y0 <= box.y0 and box.y1 <= whole.y1, name
    for i, (name, a) in enumerate(boxes):
        for other, b in boxes[i + 1 :]:
            apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
            assert apart, (name, other)
    shown = " ".join(text.get_text() for text in figure.texts)
    assert ("18 of 31 layers" in shown) == (layers == 30)
    assert ("8 of 12 steps" in shown) == (t == 12)
    lines = [axis.lines for axis in figure.axes if axis.lines]
    drawn, *enlarged = lines
    assert len(drawn) == min(classes, 3)
    np.testing.assert_allclose(drawn[-1].get_ydata(), 100 * p[:, 0])  # in front
    assert len(enlarged) == (sure > 0)
    for others in enlarged:  # the second in front of the third, in their colours
        assert [x.get_color() for x in others] == [x.get_color() for x in drawn[:2]]
        np.testing.assert_allclose(others[-1].get_ydata(), 100 * p[:, 1])
        assert others[-1].axes.get_ylim()[1] < 10


@pytest.mark.parametrize(("most", "panels"), [(0.2, 1), (0.05, 2), (0.0005, 1)])
def test_what_is_flat_is_enlarged_unless_it_is_nothing(most, panels, monkeypatch):
    kept = []
    monkeypatch.setattr(base, "save", lambda figure, path: kept.append(figure) or path)
    pixels, spikes, _, names = example(t=2, layers=1, classes=2)
    p = np.array([[1 - most, most], [1, 0]])
    plots.prediction(pixels, spikes, p, names, "x.png", probabilities=p[-1])
    assert sum(bool(axis.lines) for axis in kept[0].axes) == panels


def test_the_picture_keeps_its_own_colours(monkeypatch):
    kept = []
    monkeypatch.setattr(base, "save", lambda figure, path: kept.append(figure) or path)
    pixels, spikes, p, names = example()
    pixels[:] = 90  # not stretched to white
    plots.prediction(pixels, spikes, p, names, "x.png", probabilities=p[-1])
    (image,) = kept[0].axes[0].images
    assert (np.asarray(image.get_array()) == 90).all()


def test_a_file_is_written_the_same_again(tmp_path):
    pixels, spikes, p, names = example()
    for name in ("a.png", "b.png"):
        path = plots.prediction(
            pixels, spikes, p, names, tmp_path / name, probabilities=p[-1]
        )
        assert path.stat().st_size > 10_000
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_shapes_that_do_not_fit_are_named():
    pixels, spikes, p, names = example()
    with pytest.raises(ValueError, match=r"got \(2, 7\) probabilities, 7 classes"):
        plots.prediction(pixels, spikes, p[:2], names, "x.png", probabilities=p[-1])
    with pytest.raises(ValueError, match=r"got pixels \(8, 8\), expected"):
        plots.prediction(pixels[..., 0], spikes, p, names, "x.png", probabilities=p[-1])
