"""README's first table is collected from files of runs, by the settings it says."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "experiments" / "results"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import first_light

    return first_light


def test_every_run_has_a_file_of_the_config_it_would_have_now(script):
    runs = script.runs()
    assert len({run.name for run in runs}) == len(runs) == 50
    assert all(run.result.exists() for run in runs)
    for run in runs[::6]:
        script.sweep.check(run)


def test_the_rows_are_collected_from_these_files(script):
    value = json.loads((RESULTS / "first_light.json").read_text())
    about = {k: value[k] for k in ("command", "what")}
    assert script.sweep.collect(script.runs(), **about) == value
    assert len(value["rows"]) == 10 and all(row["n"] == 5 for row in value["rows"])
