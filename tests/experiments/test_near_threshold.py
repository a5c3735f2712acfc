"""What is measured before training, and the rank correlations made of it."""

import importlib.util
import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def script():
    path = ROOT / "experiments" / "near_threshold.py"
    spec = importlib.util.spec_from_file_location("near_threshold", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ranks_share_their_mean_and_correlate(script):
    np.testing.assert_array_equal(script.ranks([3, 1, 3, math.inf]), [2.5, 1, 2.5, 4])
    assert script.spearman([1, 2, 30], [5, 6, 7]) == pytest.approx(1)
    assert script.spearman([1, 2, 30], [math.inf, 6, 5]) == pytest.approx(-1)
    # ranks 1 2 3 4 against 2 1 4 3: 1 - 6 (1 + 1 + 1 + 1) / (4 (16 - 1)) = 0.6
    assert script.spearman([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)


def test_agreement_is_the_mean_cosine_of_pairs(script):
    # pairs: (x, 3x) 1, (x, y) 0, (3x, y) 0
    g = jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    assert script.agreement(g) == pytest.approx(1 / 3)
    assert jnp.isnan(script.agreement(jnp.zeros((3, 2))))


def test_slopes_are_those_of_the_neuron(script):
    d = jnp.array([[-2.0, 0.0], [0.5, 0.6]])
    guo = script.slope_of({"rule": "guo", "surrogate": "atan"})(d)
    np.testing.assert_array_equal(guo, [[0, 1], [1, 0]])
    # arctan: 1 / (1 + (pi x)^2)
    atan = script.slope_of({"rule": "paper", "surrogate": "atan"})(d)
    np.testing.assert_allclose(atan, 1 / (1 + (math.pi * d) ** 2), rtol=1e-5)


def test_reached_is_the_first_training_step(script):
    curve = [
        {"step": 50, "split": "train", "accuracy": 0.5},
        {"step": 50, "split": "test", "accuracy": 0.99},
        {"step": 100, "split": "train", "accuracy": 0.9},
        {"step": 150, "split": "train", "accuracy": 0.8},
    ]
    assert script.reached(curve) == 100 and script.reached(curve, 0.95) is None


def test_the_file_has_every_setting_with_its_runs(script):
    results = ROOT / "experiments" / "results"
    value = json.loads((results / "near_threshold.json").read_text())
    runs = [json.loads(f.read_text()) for f in (results / "ablation").glob("*.json")]
    runs = [run for run in runs if script.compares(run)]
    assert len(runs) == sum(len(row["accuracies"]) for row in value["rows"])
    for row in value["rows"]:
        same = [run for run in runs if run["settings"] == row["settings"]]
        same.sort(key=lambda run: run["seed"])
        assert row["accuracies"] == [run["test"]["accuracy"] for run in same]
        assert row["reached"] == [script.reached(run["curve"]) for run in same]
    kept = [row for row in value["rows"] if script.learns(row)]
    want = {"all settings": value["rows"], "nothing frozen": kept}
    for name, rows in want.items():
        assert value["rank_correlations"][name] == script.correlations(rows)
