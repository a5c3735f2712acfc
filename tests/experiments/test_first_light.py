"""The script that makes README's table counts and summarises rightly."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def script(tmp_path, monkeypatch):
    path = ROOT / "experiments" / "first_light.py"
    spec = importlib.util.spec_from_file_location("first_light", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(str(path.parent))
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    return module


def test_summary_of_three_numbers(script):
    assert script.summary([1.0, 2.0, 6.0]) == {
        "median": 2.0,
        "mean": 3.0,
        "std": pytest.approx(7**0.5),
        "min": 1.0,
        "max": 6.0,
    }


def test_rows_hold_the_runs_of_their_setting_and_no_others(script):
    for seed, accuracy in ((0, 0.5), (3, 0.7)):
        folder = script.RUNS / script.name("digits", "vssa", True, seed)
        folder.mkdir(parents=True)
        keys = "parameters steps epochs device versions train_seconds"
        result = dict.fromkeys(keys.split(), 1) | {"seed": seed, "cpu_seconds": 2.0}
        result |= {"commit": "abc", "train": {}, "test": {"accuracy": accuracy}}
        result |= {"activity": {"firing_rate": {"a": 0.1, "b": 0.3}}}
        (folder / "result.json").write_text(json.dumps(result))
    value = script.collect(gflops=200.0)
    (row,) = value["rows"]
    assert (row["task"], row["attention"], row["decay_input"]) == (
        "digits",
        "vssa",
        True,
    )
    assert row["n"] == 2 and row["test_accuracy"]["mean"] == pytest.approx(0.6)
    assert [r["seed"] for r in value["runs"]] == [0, 3]
    assert value["runs"][0]["firing_rate"] == pytest.approx(0.2)
    assert value["commits"] == ["abc"]


def test_a_command_names_its_setting(script):
    line = script.command("recall", "none", False, 4)
    assert "--config=configs/recall.py:8" in line and "--config.seed=4" in line
    assert "--config.model.attention.kind=none" in line
    assert "--config.model.neuron.decay_input=False" in line


@pytest.mark.parametrize("code", [0, 3])
def test_a_run_that_fails_is_seen(script, monkeypatch, code, capsys):
    script.RUNS.mkdir()
    failing = type("Done", (), {"returncode": code})
    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: failing)
    assert script.run(("digits", "none", False, 0)) is (code == 0)
    assert ("done" if code == 0 else "exit 3") in capsys.readouterr().out
