import itertools
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib import colormaps, colors, rcParams  # noqa: E402
from matplotlib.image import imread  # noqa: E402

from a2os2a_jax.analysis import plots  # noqa: E402
from a2os2a_jax.analysis.plots import base, energy, raster, training  # noqa: E402

RNG = np.random.default_rng(0)
SPIKES = (RNG.random((1, 2, 16, 6)) < 0.3).astype(np.float32)
WAYS = {  # name -> what draws it into a path
    "training_curves": lambda path: plots.training_curves(
        [{"step": 1, "split": "train", "loss": 1.0, "accuracy": 0.5}], path, "a & b"
    ),
    "confusion": lambda path: plots.confusion(np.diag([2, 3]), path),
    "reliability": lambda path: plots.reliability(
        {"count": [2], "accuracy": [0.5], "confidence": [0.7]}, path
    ),
    "any_time": lambda path: plots.any_time([0.5, 0.75], path),
    "spike_raster": lambda path: plots.spike_raster(
        {"n": SPIKES[0]}, np.ones((4, 4)), path, 0, 1
    ),
    "contact_sheet": lambda path: plots.contact_sheet(
        np.eye(4).reshape(1, 4, 4, 1), ["a"], path
    ),
    "rate_map": lambda path: plots.rate_map({"n": [0.1, 0.2]}, path),
    "token_activity": lambda path: plots.token_activity(
        np.ones((1, 4, 4, 1)), {"n": SPIKES}, path
    ),
    "prediction": lambda path: plots.prediction(
        np.zeros((4, 4, 1), np.uint8),
        {"n": SPIKES[0]},
        [[0.6, 0.4], [0.7, 0.3]],
        ["a", "b"],
        path,
        probabilities=[0.7, 0.3],
    ),
    "energy_bars": lambda path: plots.energy_bars({"a": {"b": 1.0}}, path),
}


def test_every_figure_is_here():
    assert set(WAYS) == set(plots.__all__)


@pytest.mark.parametrize("name", WAYS)
def test_the_ending_of_the_name_decides(name, tmp_path):
    draw, before = WAYS[name], dict(rcParams)
    path = tmp_path / "figures" / "a.png"
    assert draw(path) == path
    assert imread(path).shape[2] == 4 and path.stat().st_size > 1000
    first, second = (draw(tmp_path / "figures" / f"{i}.SVG") for i in "bc")
    root = ElementTree.fromstring(first.read_bytes())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    drawn = list(root.iter())
    assert len(drawn) > 20 and not any(e.tag.endswith("}date") for e in drawn)
    with pytest.raises(ValueError, match=r"plots: got 'd.pdf', expected .* or .svg"):
        draw(tmp_path / "figures" / "d.pdf")
    names = sorted(p.name for p in path.parent.iterdir())
    assert names == ["a.png", "b.SVG", "c.SVG"]
    assert dict(rcParams) == before
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["cost $_$ up", "a$b", "$", "数字"])
def test_a_name_is_no_formula(name, tmp_path):
    path = plots.prediction(
        np.zeros((4, 4, 1), np.uint8),
        {"n": SPIKES[0]},
        [[0.6], [0.7]],
        [name],
        tmp_path / "a.svg",
        probabilities=[0.7],
        title=name,
    )
    assert name in "".join(ElementTree.fromstring(path.read_bytes()).itertext())


def test_text_stays_text_in_svg(tmp_path):
    path = WAYS["training_curves"](tmp_path / "a.svg")
    root = ElementTree.fromstring(path.read_bytes())
    texts = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("}text")]
    assert "a & b" in texts and "accuracy (%)" in texts


def test_ink_is_what_stands_out():
    def contrast(a, b):
        low, high = sorted((base.luminance(a), base.luminance(b)))
        return (high + 0.05) / (low + 0.05)

    assert base.luminance("white") == pytest.approx(1) and not base.luminance("black")
    assert base.luminance("#808080") == pytest.approx(0.2159, abs=1e-4)
    for colour in [*energy.COLOURS, *colormaps[base.SHARES](np.linspace(0, 1, 64))]:
        assert contrast(base.ink(colour), colour) >= 4.5


def test_colours_differ_for_the_colour_blind(seen):
    def nearest(some):
        pairs = itertools.combinations([seen(c) for c in some], 2)
        return min(np.linalg.norm(a - b) for a, b in pairs)

    assert nearest(["#d62728", "#8c6d31"]) < 15  # red and brown: the check can fail
    assert nearest(energy.COLOURS) > 15
    assert nearest([colour for colour, _, _ in training._SPLITS.values()]) > 40
    of_spikes = [raster._SILENT, raster._SPIKE, raster._PLUS, raster._MINUS]
    assert nearest(of_spikes) > 40
    # beside each other in a bar: also in grey
    lightness = [seen(c)[0] for c in energy.COLOURS]
    assert np.abs(np.diff(lightness)).min() > 5
    scale = [seen(c)[0] for c in colormaps[base.SHARES](np.linspace(0, 1, 16))]
    assert np.diff(scale).min() > 2  # ever lighter
    assert colors.same_color(base.BLUE, training._SPLITS["train"][0])


def test_importing_the_module_does_not_import_matplotlib():
    code = (
        "import sys, a2os2a_jax.analysis.plots; assert 'matplotlib' not in sys.modules"
    )
    env = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)
