"""docs/ablations.md is what the JSON files say."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def script():
    path = ROOT / "experiments" / "report.py"
    spec = importlib.util.spec_from_file_location("report", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_results(script):
    assert script.render() == (ROOT / "docs" / "ablations.md").read_text()


def test_another_result_gives_another_page(script, monkeypatch):
    before, read = script.render(), script.read

    def other(name):
        value = read(name)
        if name == "ablation":
            value["rows"][1]["test_accuracy"]["mean"] = 0.123
        return value

    monkeypatch.setattr(script, "read", other)
    assert "12.30 ±" in script.render() and "12.30 ±" not in before


def test_every_row_is_that_of_its_runs(script):
    """The table was collected from the files of the runs, and none is missing."""
    rows = script.read("ablation")["rows"]
    assert len(rows) == 48 and all(row["n"] == 3 for row in rows)
    folder = ROOT / "experiments" / "results" / "ablation"
    runs = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert len(runs) == 144
    for row in rows:
        found = sorted(
            run["test"]["accuracy"]
            for run in runs
            if run["settings"] == row["settings"] and row["config"] in run["command"]
            if (":8" in run["command"]) == (":8" in row["config"])
        )
        assert found == sorted(row["accuracies"]), row["settings"]


def test_told_apart_needs_ranges_and_spread(script):
    def row(*values):
        return {"test_accuracy": _summary(values)}

    def _summary(v):
        mean = sum(v) / 3
        std = (sum((x - mean) ** 2 for x in v) / 2) ** 0.5
        return {"min": min(v), "max": max(v), "mean": mean, "std": std}

    assert script.apart(row(0.9, 0.91, 0.92), row(0.8, 0.81, 0.82))
    assert not script.apart(row(0.9, 0.91, 0.92), row(0.8, 0.81, 0.905))  # overlap
    assert not script.apart(row(0.9, 0.91, 0.92), row(0.1, 0.88, 0.89))  # wide
