"""The figures of docs/ can be drawn, and name runs that exist."""

import functools
import importlib.util
from pathlib import Path

import pytest

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
