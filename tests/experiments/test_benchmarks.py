"""What was measured beside the runs: the input side, and what augmentation costs."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def test_the_input_side_is_not_what_a_device_waits_for():
    value = read("input")
    assert value["small"]["host_arrays_images_per_s"] >= 40_000
    assert value["decoding"]["imagenet_size"]["ours_over_pillow_seconds"] <= 1.1


def test_randaugment_is_a_small_part_of_a_step():
    value = read("augment_time")
    assert value["ratio"] <= 0.2
    ratio = (
        value["randaugment_seconds"]["median"] / value["train_step_seconds"]["median"]
    )
    assert value["ratio"] == pytest.approx(ratio)


def test_the_step_it_is_compared_with_does_not_augment(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "benchmarks"))
    path = ROOT / "experiments" / "benchmarks" / "augment.py"
    spec = importlib.util.spec_from_file_location("benchmark_augment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    inputs = module.prepare("1-16", 16).inputs
    assert inputs.mix is None and inputs.mix_until is None
    inputs.augment(jax.random.key(0), jnp.zeros((1, 8, 8, 2)))  # RandAugment refuses
