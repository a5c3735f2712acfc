"""Tracks of the CIFAR experiments: their runs, their names, and that they parse."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cifar(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    for name in ("cifar", "sweep"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import cifar

    monkeypatch.setattr(cifar.sweep, "ROOT", tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return cifar


def test_the_factorial_is_complete_and_one_seed_comes_first(cifar):
    runs = cifar.runs("factorial", 20, 2, [("dtype", "bfloat16")])
    assert len({run.name for run in runs}) == len(runs) == 2 * 14
    assert [run.seed for run in runs] == [0] * 14 + [1] * 14
    of = [dict(run.settings) for run in runs[:14]]
    product = {
        (s.get(cifar.K, "relu"), s.get(cifar.V, "ternary"), s[cifar.DECAY])
        for s in of
        if s[cifar.KIND] == "a2os2a"
    }
    assert len(product) == 8
    for kind in ("none", "frozen_qk", "frozen_v"):
        assert {s[cifar.DECAY] for s in of if s[cifar.KIND] == kind} == {
            "True",
            "False",
        }
    assert all(run.config == "configs/cifar10.py:2-256,20" for run in runs)


def test_the_papers_table_is_a_track(cifar):
    runs = cifar.runs("reproduction", 300, 1, [])
    assert {(run.config, run.settings[-1][1]) for run in runs} == {
        (f"configs/{name}.py:{size},300", kind)
        for name in ("cifar10", "cifar100")
        for size in ("2-256", "2-512")
        for kind in ("a2os2a", "vssa")
    }
    assert {run.settings[0][1] for run in runs} == {
        "npz:packed/cifar10",
        "npz:packed/cifar100",
    }


@pytest.mark.parametrize("track", ["factorial", "2-512", "reproduction", "best"])
def test_what_is_run_parses(cifar, track):
    runs = cifar.runs(track, 20, 1, [("train.dispatch", "20")])
    for run in runs[::3]:
        cifar.sweep.check(run)


def test_no_track_writes_over_the_table_of_another(cifar, tmp_path, capsys):
    for line in (
        ["factorial", "--collect"],
        ["factorial", "--epochs=100", "--collect"],
        ["reproduction", "--collect"],
    ):
        assert cifar.main(line) == cifar.sweep.OUT_OF_TIME  # none has run
    assert "runs are to come" in capsys.readouterr().out
    written = sorted((tmp_path / "experiments/results").iterdir())
    assert [path.name for path in written] == [
        "cifar-factorial-100.json",
        "cifar-factorial-20.json",
        "cifar-reproduction-300.json",
    ]
    command = json.loads(written[0].read_text())["command"]
    assert command == "python experiments/cifar.py factorial --epochs=100"


def test_a_recipe_of_ones_own_is_one_recipe(cifar, capsys):
    line = ["best", "--name=lr", "--collect", "--set"]
    assert cifar.main([*line, "optim.lr=1e-3,1e-4"]) == 1
    assert "expected one" in capsys.readouterr().err
    assert cifar.main([*line, "optim.lr=1e-3"]) == cifar.sweep.OUT_OF_TIME
    assert "cifar-best-lr-300.json" in capsys.readouterr().out
    for wrong in (
        ["best", "--set", "optim.lr=1e-3"],
        ["reproduction", "--name=lr"],
        ["reproduction", "--set", "optim.lr=1e-3"],
        ["reproduction", "--seeds=0"],
        ["reproduction", "--minutes=1"],
    ):
        assert cifar.main(wrong) == 1 and "expected" in capsys.readouterr().err
