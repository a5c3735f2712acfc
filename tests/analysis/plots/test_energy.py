import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.colors import same_color  # noqa: E402

from a2os2a_jax.analysis import plots  # noqa: E402
from a2os2a_jax.analysis.plots import energy  # noqa: E402

ACCOUNTS = {
    "operations": {"first convolution": 3000.0, "linear maps": 1000.0},
    "with memory": {"linear maps": 1000.0, "memory": 6000.0, "head": 1.0},
}


def test_bars_are_stacked_and_summed(tmp_path, figures, share):
    path = plots.energy_bars(ACCOUNTS, tmp_path / "e.png", "digits", "rate 10 %")
    (axis,) = figures[0].axes
    bars = [
        (b.get_y() + b.get_height() / 2, b.get_x(), b.get_width()) for b in axis.patches
    ]
    one, two = 0.5, 1.5 + energy._APART
    np.testing.assert_allclose(
        bars,
        [[one, 0, 3], [one, 3, 1], [two, 0, 1], [two, 1, 6], [two, 7, 0.001]],
        atol=1e-12,
    )
    assert axis.get_xlabel() == "estimated energy of one example (µJ), 45 nm"
    texts = [t.get_text() for t in axis.texts]
    assert texts == ["75 %", "25 %", "4.00 µJ", "14 %", "86 %", "7.00 µJ"]
    low, high = axis.get_ylim()
    assert low > high  # the first account above
    assert [t.get_text() for t in axis.get_yticklabels()] == list(ACCOUNTS)
    legend = figures[0].legends[0]
    parts = ["first convolution", "linear maps", "memory", "head"]
    assert [t.get_text() for t in legend.get_texts()] == parts
    colours = [b.get_facecolor() for b in axis.patches]
    assert same_color(colours[1], colours[2])  # one part, one colour
    for i, handle in enumerate(legend.get_patches()):
        assert same_color(handle.get_facecolor(), energy.COLOURS[i])
    assert {t.get_text() for t in figures[0].texts} == {"digits", "rate 10 %"}
    assert share(path, energy.COLOURS[2]) > 0.05


COSTS = ("float32", "int8 weights, int32 sums")
WHATS = (
    "spiking, field's formula",
    "ANN, its products alone",
    "spiking, all of it",
    "ANN, all of it",
)


def test_a_spiking_bar_stands_beside_its_ann(tmp_path, figures, apart):
    path = tmp_path / "e.png"
    note = "rate 9 %; the ANN is beaten below 12.3 % (a rather long name)" * 9
    names = [f"{c}: {what}" for c in COSTS for what in WHATS]
    accounts = {name: {"a": i + 1.0, "b": 2.0} for i, name in enumerate(names)}
    plots.energy_bars(accounts, path, "t", note)
    figure = figures[0]
    (axis,) = figure.axes
    at = axis.get_yticks()
    np.testing.assert_allclose(np.diff(at)[::2], 1)
    np.testing.assert_allclose(np.diff(at)[1::2], 1 + energy._HEADED)
    labels = [t.get_text() for t in axis.get_yticklabels()]
    assert labels == [*WHATS[:2], "spiking", "ANN"] * 2
    headings = [c + how for c in COSTS for how in ("", ", all of it")]
    shown = [t for t in axis.texts if t.get_text() in headings]
    assert [t.get_text() for t in shown] == headings
    for text, first in zip(shown, at[::2], strict=True):  # above the pair it is of
        assert first - 1 < text.xy[1] < first - 0.5
    (below,) = (t for t in figure.texts if t.get_text() != "t")
    assert below.get_text().count("\n") == 1 and below.get_text().endswith(" …")
    apart(figure, [*axis.texts, *axis.get_yticklabels(), *figure.texts])
    bars = [p.get_window_extent() for p in axis.patches]
    for text in shown:
        box = text.get_window_extent(figure.canvas.get_renderer())
        assert not any(box.overlaps(bar) for bar in bars)


@pytest.mark.parametrize(
    ("names", "own", "shared"),
    [
        (["a, b"], ["a, b"], ""),
        (["x: spiking, all", "x: ANN, all"], ["spiking", "ANN"], "x, all"),
        (["spiking, all, x", "ANN, x"], ["spiking, all", "ANN"], "x"),
        (["ANN", "a, ANN"], ["ANN", "a, ANN"], ""),
    ],
)
def test_what_names_share_is_said_once(names, own, shared):
    assert energy._apart(names) == (own, shared)


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (3, 8), (5, 14)])
def test_nothing_overlaps(tmp_path, figures, apart, count, parts):
    accounts = {
        f"a rather long name of an account, with its constants, {i}": {
            f"biases and residuals {p}": 10.0 ** (i + p / 30) for p in range(parts)
        }
        for i in range(count)
    }
    plots.energy_bars(accounts, tmp_path / "e.svg", "t" * 80, "a note " * 14)
    figure = figures[0]
    (axis,) = figure.axes
    outside = [*figure.texts, axis.xaxis.label, figure.legends[0]]
    apart(figure, outside, [axis, *axis.get_xticklabels()])
    apart(figure, [*axis.texts, *axis.get_yticklabels()])
    looks = {(p.get_facecolor(), p.get_hatch()) for p in axis.patches}
    assert len(looks) == parts


@pytest.mark.parametrize(
    ("nanojoule", "text"),
    [
        (0.0, "0"),
        (2e-5, "0.0200 pJ"),
        (0.5, "500 pJ"),
        (1.0, "1.00 nJ"),
        (12345.0, "12.3 µJ"),
        (2.5e6, "2.50 mJ"),
    ],
)
def test_amounts_in_a_unit_that_fits(nanojoule, text):
    assert energy._amount(nanojoule) == text


def test_an_account_of_nothing_is_drawn(tmp_path, figures):
    plots.energy_bars({"a": {"b": 0.0}}, tmp_path / "e.png")
    assert [t.get_text() for t in figures[0].axes[0].texts] == ["0"]


@pytest.mark.parametrize(
    ("accounts", "message"),
    [
        ({}, "got no accounts, expected some"),
        ({"a": {}}, "a has no parts, expected some"),
        ({"a": {"b": -1.0}}, "a, b has -1.0 nJ, expected a finite number >= 0"),
        ({"a": {"b": float("nan")}}, "a, b has nan nJ, expected"),
        ({"a": {"b": float("inf")}}, "a, b has inf nJ, expected"),
    ],
)
def test_energies_that_are_none(accounts, message, tmp_path):
    with pytest.raises(ValueError, match=f"energy_bars: {message}"):
        plots.energy_bars(accounts, tmp_path / "e.png")
    assert not list(tmp_path.iterdir())
