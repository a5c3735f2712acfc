"""The scripts behind docs/certificate.md, on models that are done in a moment."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax.train import setup
from tests.analysis.test_brute_force import made

ROOT = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture
def load(monkeypatch):
    """name -> the script as a module; the path is as before afterwards."""

    def of(name):
        monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
        spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return of


def test_a_row_holds_the_verdict_and_its_price(load):
    script = load("certificates")
    how = dict(num_classes=10, image_size=8, heads=2)
    row = script.row("columnar", "1-16", how, (8, 8, 3))
    assert row["verdict"] == "addition-only" and not row["refused"]
    assert row["permitted"] == [["stem/conv_0", 22 * 22 * 3 * 2]]
    assert row["counts"]["addition"] == sum(row["price"]["addition"].values())
    assert row["as_trained"]["verdict"] == "not addition-only"
    assert row["heads"]["counts"]["products"] == 16 * 10
    cases = list(script.cases())
    assert {variant for _, variant, *_ in cases} >= {"8-384", "8-768", "2-512"}
    assert {family for family, *_ in cases} == {"columnar", "spike_driven"}


def test_folding_compares_both_models_on_all_examples(load):
    script = load("folding")
    c = configs.default()
    c.data.update(name="fake", size=8, channels=1, classes=4)
    c.model.update(variant="1-16", heads=2, timesteps=2)
    c.train.batch = 8
    parts = setup.prepare(c)
    drawn = made(parts.model, jnp.zeros((1, 8, 8, 1)))
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), drawn)
    found = script.compare(parts, variables)
    assert found["examples"] == parts.dataset.test.size
    assert abs(found["accuracy"] - found["accuracy_folded"]) < 0.05
    assert found["flip_rate"] < 1e-3 and found["spikes"] > 0
    assert len(found["flip_rate_of_layers"]) == 11
