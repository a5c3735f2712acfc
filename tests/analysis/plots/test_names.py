"""Names of classes and sets come from folders, and may hold anything."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from a2os2a_jax.analysis import plots  # noqa: E402
from a2os2a_jax.analysis.plots import base  # noqa: E402

ODD = ("x" * 199 + "y", "x" * 199 + "z", "a\nb\r\n c\x1b[1m", "caf\udce9 $x$", "日本")
RNG = np.random.default_rng(0)
SPIKES = {
    f"block_{i}/neuron": np.float32(RNG.random((3, 16, 8)) < 0.2) for i in range(3)
}
TITLE = f"folder:{ODD[3]}/{ODD[2]}, of {ODD[0]}"


def confusion(path):
    return plots.confusion(np.eye(len(ODD), dtype=int), path, ODD, TITLE)


def raster(path):
    return plots.spike_raster(SPIKES, RNG.random((8, 8)), path, 0, 2, ODD, TITLE)


def prediction(path):
    p = RNG.dirichlet(np.ones(len(ODD)), 3)
    pixels = np.zeros((8, 8, 1), np.uint8)
    return plots.prediction(
        pixels, SPIKES, p, ODD, path, probabilities=p[-1], title=TITLE
    )


def sheet(path):
    return plots.contact_sheet(RNG.random((len(ODD), 6, 6, 1)), ODD, path, TITLE)


def training(path):
    return plots.training_curves(
        [{"split": "train", "step": 1, "loss": 1.0}], path, TITLE
    )


def any_time(path):
    return plots.any_time([0.5, 1.0], path, TITLE)


DRAWN = (confusion, raster, prediction, sheet, training, any_time)


@pytest.mark.parametrize("draw", DRAWN)
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_odd_names_are_drawn_short_and_on_their_line(tmp_path, figures, draw, kind):
    path = draw(tmp_path / f"figure.{kind}")
    (figure,) = figures
    assert max(figure.get_size_inches()) < 12 and path.stat().st_size < 400_000
    with base._any_glyph():
        figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    names = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    words = [t for t in names if any(map(str.isalpha, t.get_text()))]
    boxes = [t.get_window_extent(renderer) for t in words]
    assert all(-1 < b.x0 and b.x1 < figure.bbox.x1 + 1 for b in boxes)
    told = "\n".join(t.get_text() for t in names)
    assert r"caf\xe9" in told
    told.encode()  # no half characters
    if draw is confusion:  # those that begin alike are told apart
        ticks = [t.get_text() for t in figure.axes[0].get_yticklabels()]
        assert len(set(ticks)) == len(ODD) and max(map(len, ticks)) <= 26
