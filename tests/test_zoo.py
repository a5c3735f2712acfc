"""Weights that come with the package are what their cards say, and are found."""

import hashlib
import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax import zoo
from a2os2a_jax.train import finetune, inference, setup

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("digits", "fashion_mnist", "recall")


def writer():
    spec = importlib.util.spec_from_file_location("w", ROOT / "experiments" / "zoo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_three():
    assert zoo.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_of_the_file(name):
    card, path = zoo.card(name), zoo.path(f"zoo:{name}")
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == card["sha256"]
    assert len(data) == card["bytes"] <= 2_000_000
    assert {p.name for p in path.parent.iterdir()} == {
        *("README.md", "card.json", "log.jsonl", "weights.safetensors")
    }
    trained = card["trained"]
    assert trained["seed"] == 0 and re.fullmatch("[0-9a-f]{40}", trained["commit"])
    assert trained["effective_batch"] and trained["device"] and trained["command"]
    assert card["terms"]["weights"].startswith("Apache-2.0") and card["terms"]["data"]
    *_, last = map(json.loads, (path.parent / "log.jsonl").read_text().splitlines())
    assert last["step"] == trained["steps"] and last["split"] == "test"
    assert last["accuracy"] == pytest.approx(card["test"]["accuracy"], rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_cards_for_people_are_made_from_cards_for_programs(name):
    page = writer().page(name, zoo.card(name))
    assert (zoo.path(name).parent / "README.md").read_text() == page
    assert writer().over_seeds(name) == zoo.card(name)["over_seeds"]


@pytest.mark.parametrize("name", NAMES)
def test_weights_fit_the_model_that_they_name(name):
    variables, about = finetune.source(f"zoo:{name}")
    assert (
        about["path"] == f"zoo:{name}" and about["sha256"] == zoo.card(name)["sha256"]
    )
    config = inference.config_of(f"zoo:{name}")
    ready = inference.load(config, f"zoo:{name}")
    assert (
        sum(np.size(x) for x in jax.tree.leaves(variables["params"]))
        == (zoo.card(name)["parameters"])
    )
    assert ready.spec.classes == zoo.card(name)["classes"] == 10


def test_a_name_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="init_from: zoo:cifar10 is not there, exp"):
        finetune.source("zoo:cifar10")
    for wrong in ("zoo:", "zoo:../zoo/digits", "zoo:digits/"):
        with pytest.raises(ValueError, match="is not there, expected zoo:digits or"):
            finetune.source(wrong)


def test_what_is_there_is_not_replaced(tmp_path):
    before = zoo.path("digits").read_bytes()
    with pytest.raises(ValueError, match="digits is there already"):
        writer().add("digits", str(tmp_path))
    assert zoo.path("digits").read_bytes() == before


def scored(name, **data):
    """Accuracy of the weights on the test examples, now."""
    config = inference.config_of(f"zoo:{name}")
    config.mesh.data = 1
    parts = setup.prepare(configs.filled(config))
    variables, _ = finetune.source(f"zoo:{name}")
    return parts.evaluator(config, "test").report(variables)["accuracy"]


def test_digits_score_what_the_card_says():
    test = zoo.card("digits")["test"]
    # a few spikes flip on another machine, and an answer with them
    assert math.isclose(scored("digits"), test["accuracy"], abs_tol=2.5 / test["count"])


@pytest.mark.slow
def test_recall_scores_what_the_card_says():
    test = zoo.card("recall")["test"]
    assert math.isclose(scored("recall"), test["accuracy"], abs_tol=0.005)


@pytest.mark.slow
def test_an_installed_package_has_them(tmp_path):
    source = tmp_path / "source"  # building leaves files in its folder
    without = shutil.ignore_patterns("__pycache__", ".*", "runs", "build", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=without)
    how = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*how, str(source)], check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        held = set(file.namelist())
    for name in NAMES:
        for path in zoo.path(name).parent.iterdir():
            assert f"a2os2a_jax/zoo/{name}/{path.name}" in held
