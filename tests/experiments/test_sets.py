"""What was trained on real data: its files, its weights, and what configs say of it."""

import importlib.util
import json
import os
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from a2os2a_jax import zoo
from a2os2a_jax.interop import weights
from a2os2a_jax.train import setup

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "experiments" / "results"
WEIGHTS = zoo.path("fashion_mnist")


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def config_of(name):
    path = ROOT / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "files", "rows"),
    [("fashion_mnist", 1, 1), ("fashion_mnist-short", 9, 3), ("nmnist-sample", 3, 1)],
)
def test_every_table_has_its_runs(monkeypatch, name, files, rows):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import sweep

    value = read(name)
    assert len(list((RESULTS / name).glob("*.json"))) == files
    assert len(value["rows"]) == rows
    config = f"configs/{name.partition('-')[0]}.py{name.partition('-')[2] and ':'}"
    config += name.partition("-")[2]
    settings = [tuple(row["settings"].items()) for row in value["rows"]]
    runs = sweep.runs_of(name, config, settings, range(files // rows))
    for run in runs:
        sweep.check(run)
    about = {k: value[k] for k in ("command", "what")}
    assert sweep.collect(runs, **about) == value


@pytest.mark.parametrize(
    ("config", "name"),
    [("fashion_mnist", "fashion_mnist"), ("nmnist", "nmnist-sample")],
)
def test_configs_say_what_the_files_say(config, name):
    value = 100 * read(name)["rows"][0]["test_accuracy"]["median"]
    text = " ".join(config_of(config).__doc__.split())
    assert f"{value:.2f} %" in text and f"experiments/results/{name}.json" in text
    assert not re.search(r"not (yet )?run|not measured", text.split(name)[-1])


def test_the_weights_are_those_of_the_run():
    variables, about = weights.load(WEIGHTS)
    size = sum(np.size(x) for x in jax.tree.leaves(variables["params"]))
    result = read("fashion_mnist/fashion_mnist,seed=0")
    assert size == result["parameters"] <= 500_000
    assert about["step"] == result["steps"] and about["commit"] == result["commit"]
    assert WEIGHTS.stat().st_size < 2e6


@pytest.mark.slow
def test_the_weights_score_what_the_file_says():
    folder = os.path.join(os.environ.get("A2OS2A_DATA", ""), "tfds", "fashion_mnist")
    if not os.path.isdir(folder):
        pytest.skip("needs A2OS2A_DATA with tfds/fashion_mnist")
    config = config_of("fashion_mnist").get_config()
    config.mesh.data = 1
    parts = setup.prepare(config)
    test = parts.dataset.test
    variables, _ = weights.load(WEIGHTS)

    @jax.jit
    def right(resident, index):
        batch = test.gather(resident, index)
        logits = parts.model.apply(variables, batch["image"], train=False)
        return (logits.argmax(-1) == batch["label"]).sum()

    parts_of = np.arange(test.size).reshape(-1, 500)
    total = sum(int(right(test.resident, test.fetch(index))) for index in parts_of)
    expected = read("fashion_mnist/fashion_mnist,seed=0")["test"]["accuracy"]
    assert abs(total / test.size - expected) <= 2e-4
