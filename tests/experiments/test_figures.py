"""The figures of docs/ can be drawn, and name runs that exist."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from a2os2a_jax.functional import attention, neurons
from experiments import concepts

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def script():
    path = ROOT / "experiments" / "figures.py"
    spec = importlib.util.spec_from_file_location("figures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_line_has_three_seeds_at_every_step(script):
    for line in (line for lines in script.PANELS.values() for line in lines):
        curves = script.curves(line.run)
        assert list(curves) == list(range(50, 901, 50)), line.run
        assert all(len(values) == 3 for values in curves.values()), line.run


def test_colours_and_dashes_differ_within_a_panel(script):
    for lines in script.PANELS.values():
        assert len({line.colour for line in lines}) == len(lines)


def test_a_row_is_drawn_in_the_first_group_that_fits(script):
    kind = "model.attention.kind"
    rows = [
        {"settings": {kind: "frozen_v"}},
        {"settings": {kind: "vssa", "model.neuron.rule": "guo"}},
        {"settings": {kind: "vssa"}},
        {"settings": {kind: "a2os2a", "model.attention.v": "binary"}},
        {"settings": {kind: "a2os2a"}},
    ]
    assert [len(rows) for rows in script.grouped(rows).values()] == [1] * 5


def test_all_figures_are_written(script, tmp_path):
    draws = (script.ablation_curves, script.near_threshold, script.energy, script.rates)
    for draw in draws:
        assert draw(tmp_path).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    names = {"ablation_curves", "ablation_near_threshold", "energy", "rates"}
    assert {path.stem for path in tmp_path.iterdir()} == names


def test_what_was_counted_is_what_is_drawn(script, tmp_path, monkeypatch):
    calls = {}
    for name in ("energy_bars", "rate_map"):
        spy = functools.partial(lambda name, *args: calls.update({name: args}), name)
        monkeypatch.setattr(script.plots, name, spy)
    script.energy(tmp_path), script.rates(tmp_path)
    row = script.counted()
    about = "columnar 1-128, a2os2a, on fashion_mnist, T = 2; 10,000 of test"
    bars, path, title, note = calls["energy_bars"]
    assert (bars, note, path.name) == (row["bars"], row["note"], "energy.png")
    assert title == f"Estimated energy: {about}"
    table, path, title = calls["rate_map"]
    assert (title, path.name) == (f"Firing rates: {about}", "rates.png")
    assert list(table) == list(row["rates"])
    signed = [name for name, of in table.items() if isinstance(of, dict)]
    assert signed == ["block_0/attention/v_neuron"]
    assert table["stem_neuron"] == row["rates"]["stem_neuron"]["plus"]


# ---- the concepts


@pytest.mark.slow
def test_every_concept_is_written(tmp_path):
    for draw in concepts.ALL:
        assert draw(tmp_path).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    drawn = {draw.__name__ for draw in concepts.ALL}
    assert {path.stem for path in tmp_path.iterdir()} == drawn


def test_words_of_the_block_are_apart_and_legible_where_github_shows_them(monkeypatch):
    kept = []
    monkeypatch.setattr(
        concepts.base, "save", lambda drawn, *_, **__: kept.append(drawn)
    )
    concepts.block()
    (drawn,) = kept
    draw = drawn.canvas.get_renderer()
    (axis,) = drawn.axes
    boxes = [x.get_window_extent(draw) for x in axis.patches]
    texts = [x for x in axis.texts if x.get_text()]
    words = [(x.get_text(), x.get_window_extent(draw)) for x in texts]
    assert len(boxes) == 14
    shown = 830 / drawn.bbox.width
    for i, (text, a) in enumerate(words):
        assert 4 <= a.x0 and a.x1 <= drawn.bbox.width - 4, text
        assert a.height * shown >= 11, text
        for b in boxes:  # in a box or beside it
            within = b.x0 <= a.x0 and a.x1 <= b.x1 and b.y0 <= a.y0 and a.y1 <= b.y1
            assert within or not a.overlaps(b), text
        assert not any(a.overlaps(b) for _, b in words[i + 1 :]), text
    for i, a in enumerate(boxes):  # and where no arrow leads, well apart
        assert not any(a.padded(20).overlaps(b) for b in boxes[i + 1 :])


def test_traces_are_those_of_the_neurons():
    lif, decayed, ternary, guo = concepts.traces()
    whole = neurons.unroll(neurons.lif_step, neurons.lif_init, concepts.CURRENT)
    np.testing.assert_array_equal(lif.spikes, whole)
    assert (np.flatnonzero(lif.spikes) + 1).tolist() == [3, 6, 19, 23]
    assert (np.flatnonzero(decayed.spikes) + 1).tolist() == [19]
    assert set(ternary.spikes) == set(guo.spikes) == {-1, 0, 1}
    for found in (lif, decayed, ternary, guo):
        low = min(np.abs(found.charged[found.spikes != 0]))
        assert low >= found.thresholds[0] > max(np.abs(found.after[found.spikes != 0]))
        quiet = found.spikes == 0
        np.testing.assert_array_equal(found.charged[quiet], found.after[quiet])
    # by hand: 0.6, then 0.6/2 + 0.6, then 0.9/2 + 0.6 >= 1
    np.testing.assert_allclose(lif.charged[:3], [0.6, 0.9, 1.05], rtol=1e-6)


def test_the_orders_cross_where_as_many_tokens_as_channels():
    for tokens in (16, 63, 64, 65, 1024):
        costs = {
            name: concepts.additions(name, tokens, 64) for name in ("qk_v", "q_kv")
        }
        auto = attention.resolve_order("auto", tokens, tokens, 64)
        assert costs[auto] == min(costs.values())
        assert (costs["qk_v"] < costs["q_kv"]) == (tokens < 64)
    assert concepts.additions("qk_v", 2, 3) == 2 * 2 * 2 * 3  # 2 products, N N d


def test_darker_pixels_fire_more_often():
    picture, spikes = concepts.coded(steps=4)
    counts = spikes.sum(0)
    assert counts[picture.argmax() // 8, picture.argmax() % 8] == 4
    assert counts[picture == 0].max() == 0
    by_grey = [counts[picture == grey].mean() for grey in np.unique(picture)]
    assert by_grey == sorted(by_grey)
