import numpy as np
import pytest

pytest.importorskip("matplotlib")

from a2os2a_jax.analysis import plots  # noqa: E402
from a2os2a_jax.analysis.plots import raster  # noqa: E402

RNG = np.random.default_rng(0)
IMAGE = RNG.random((8, 8))


def _spikes(*shape, rate=0.2):
    return (RNG.random(shape) < rate).astype(np.float32)


def test_raster_of_a_real_shape(tmp_path, figures, share):
    v = _spikes(4, 16, 96) * RNG.choice([-1, 1], (4, 16, 96))
    layers = {
        "stem/neuron_0": _spikes(4, 8, 8, 12),
        "block_0/attention/v": v,
        "block_0/mlp": _spikes(4, 16, 384),
        "head": _spikes(4, 10),
    }
    title = "columnar 1-96, a2os2a, on digits, step4, test, T6; the first of test"
    path = plots.spike_raster(layers, IMAGE, tmp_path / "s.png", 3, 5, title=title)
    figure = figures[0]
    # the image, four timesteps a layer, and a place map where positions form a square
    assert len(figure.axes) == 1 + 4 * 4 + 3
    texts = [t.get_text() for t in figure.texts]
    assert (
        f"stem/neuron_0\n8×8×12 · {100 * layers['stem/neuron_0'].mean():.1f} %" in texts
    )
    assert any("label: 3\npredicted: 5" in t for t in texts)
    assert title in texts and "Spikes of one example over 4 timesteps" in texts
    for s in (layers["stem/neuron_0"], v, layers["block_0/mlp"]):  # of the brightest
        spots = np.abs(s).reshape(4, -1, s.shape[-1]).sum((0, 2))
        assert f"{spots.max():.0f}" in texts
    plus, minus = 100 * (v > 0).mean(), 100 * (v < 0).mean()
    assert any(f"(+{plus:.1f} %, −{minus:.1f} %)" in t for t in texts)
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == ["spike", "spike +1", "spike −1", "silent"]
    maps = [np.asarray(a.images[0].get_array()) for a in figure.axes[1:] if a.images]
    assert max(m.shape[0] for m in maps) <= 24 and max(m.shape[1] for m in maps) <= 60
    _inside_and_apart(figure)
    assert share(path, raster._PLUS) > 1e-3 and share(path, raster._MINUS) > 1e-3


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
    plots.spike_raster(layers, IMAGE, tmp_path / "s.png", 0, 1, names, "word " * 60)
    _inside_and_apart(figures[0])


def test_a_spike_is_drawn_where_and_when_it_happens(tmp_path, figures, share):
    s = np.zeros((2, 4, 4, 3))
    s[1, 2, 3, 1] = 1
    path = plots.spike_raster({"n": s}, IMAGE, tmp_path / "s.png", 0, 0)
    _, first, second, where = figures[0].axes
    assert [t.get_text() for t in figures[0].texts].count("1") == 1  # the most
    assert not np.asarray(first.images[0].get_array()).any()
    assert np.argwhere(second.images[0].get_array()).tolist() == [[2 * 4 + 3, 1]]
    assert np.argwhere(where.images[0].get_array()).tolist() == [[2, 3]]
    assert share(path, raster._PLUS) == share(path, raster._MINUS) == 0  # binary


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
