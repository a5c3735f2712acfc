"""The scripts behind docs/certificate.md, on models that are done in a moment."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax import models
from a2os2a_jax.models.families import FAMILIES
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
    assert row["parameters"] == 7_588


def test_every_published_size_has_a_row_and_builds(load):
    cases = list(load("certificates").cases())
    for family, own in FAMILIES.items():
        assert {v for f, v, *_ in cases if f == family} == set(own.sizes)
    for family, variant, how, shape in cases:
        model = models.build(family, variant, **how)
        assert model.frame[-3:] in (shape, (*shape[-3:-1], how.get("in_channels", 3)))


def test_an_attention_has_its_options_and_where_it_is_refused(load):
    script = load("certificates")
    how = dict(num_classes=4, image_size=8, heads=2)
    row = script.attention_row("integer", "1-16", how, (8, 8, 3))
    assert row["options"]["levels"] == 4 and row["verdict"] == "not addition-only"
    assert [place for place, _ in row["refused"]][0].startswith("block_0/attention")


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
