"""The task that cannot be done without attention, trained for real."""

import importlib.util
from pathlib import Path

import pytest

from a2os2a_jax import train

FILE = Path(__file__).resolve().parents[2] / "configs" / "recall.py"


def _config():
    spec = importlib.util.spec_from_file_location("configs_recall", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("8")


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("a2os2a", 0.95, 1.0),
        pytest.param("none", 0.05, 0.15, marks=pytest.mark.slow),
    ],
)
def test_attention_recalls_and_its_absence_guesses(kind, low, high, tmp_path):
    c = _config()
    c.model.attention.kind = kind
    assert (c.train.steps, c.train.batch, c.data.pairs) == (300, 64, 8)
    result = train.run(c, tmp_path)
    assert result["test"]["count"] == 4096
    assert low <= result["test"]["accuracy"] <= high
    # one in ten: the run without attention did train, and that is all there is to learn
    if kind == "none":
        assert result["train"]["loss"] == pytest.approx(2.303, abs=0.05)
