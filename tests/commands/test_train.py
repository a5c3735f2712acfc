import json
import sys

import flax.linen as nn
import numpy as np
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax.analysis import plots
from a2os2a_jax.commands import train
from a2os2a_jax.data.sources import fake
from a2os2a_jax.train import loop, setup

pytestmark = pytest.mark.usefixtures("quick_compilation")
RESULT = {
    "config": {
        "model": {
            "name": "columnar",
            "variant": "1-16",
            "timesteps": 2,
            "attention": {"kind": "vssa"},
        },
        "eval": {"split": "test"},
    },
    "parameters": 12345,
    "epochs": 2.5,
    "steps": 1700,
    "seed": 3,
    "train_seconds": 61.4,
    "cpu_seconds": 100.2,
    "device": "1 x cpu",
    "test": {"accuracy": 0.98765, "top5": 1.0, "loss": 0.5, "count": 3600},
    "activity": {"firing_rate": {"a": 0.1, "b": 0.3, "c": 0.2}},
}


def test_the_table_says_what_was_run_and_what_came_out():
    text = train.table(RESULT)
    for words in (
        "columnar 1-16, vssa, T = 2, 12,345 parameters",
        "2.5 epochs, 1,700 steps, seed 3",
        "61 s of wall clock, 100 CPU-s, on 1 x cpu",
        "98.77 % of 3,600",
        "20.0 % on average, from 10.0 % (a) to 30.0 % (b)",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_table_is_of_the_split_the_run_was_judged_on():
    config = {**RESULT["config"], "eval": {"split": "validation"}}
    other = {**RESULT, "config": config, "validation": RESULT["test"]}
    del other["test"]
    assert "validation accuracy  98.77 %" in train.table(other)


class Toy(nn.Module):
    """Compiles at once."""

    frozen = ()

    @nn.compact
    def __call__(self, x, train=False):
        self.variable("batch_stats", "none", lambda: np.zeros(1, np.float32))
        self.sow("spikes", "out", (x if x.ndim == 5 else x[:, None]) > 0.5)
        self.sow("potentials", "out", x)
        return nn.Dense(10)(x.reshape(len(x), -1))


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(setup, "build", lambda *_, **__: Toy())


def _config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=4, channels=1)
    c.train.update(batch=64, log_steps=2)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def test_a_stopped_run_says_how_to_go_on(toy, tmp_path, capsys):
    result = train.run(_config(train__stop_after=3), tmp_path)
    assert result["stopped_at"] == 3
    out = capsys.readouterr().out
    assert "stopped after step 3" in out and str(tmp_path / "checkpoints") in out
    assert not (tmp_path / "figures").exists()


def test_the_layers_are_shown_when_a_run_starts_and_not_again(toy, tmp_path, capsys):
    layers = "Dense_0  linear  [B, 10]         170  16x10 + 10"
    train.run(_config(train__stop_after=3), tmp_path)
    err = capsys.readouterr().err
    assert layers in err and "total: 170 parameters\n" in err
    train.run(_config(), tmp_path)
    err = capsys.readouterr().err
    assert "resuming after step 3" in err and "total: " not in err


def test_a_run_stopped_by_a_signal_says_so(tmp_path, monkeypatch, capsys):
    found = {"stopped_at": 3, "stopped_by": "SIGTERM"}
    monkeypatch.setattr(loop, "run", lambda *_: found)
    assert train.run(_config(), tmp_path) == found
    assert capsys.readouterr().out.splitlines() == [
        "stopped after step 3 by SIGTERM; saved; the same command goes on"
    ]


def test_a_finished_run_is_reported_whatever_may_differ(toy, tmp_path, capsys):
    train.run(_config(), tmp_path)
    scores = json.loads((tmp_path / "result.json").read_text())["test"]
    capsys.readouterr()
    train.run(_config(eval__split="train", eval__batch=9), tmp_path)
    out = capsys.readouterr().out
    assert "holds this run already" in out
    assert f"test accuracy  {100 * scores['accuracy']:.2f} %" in out


def test_figures_that_are_missing_are_drawn_again_and_others_kept(toy, tmp_path):
    train.run(_config(), tmp_path)
    curves, raster = (
        tmp_path / "figures" / f"{name}.png"
        for name in ("training_curves", "spike_raster")
    )
    kept = curves.stat().st_mtime_ns
    raster.unlink()
    assert train.draw(_config(), tmp_path) == [raster]
    assert raster.exists() and curves.stat().st_mtime_ns == kept
    assert train.draw(_config(), tmp_path) == []


def test_the_raster_is_of_the_first_test_example(toy, tmp_path, monkeypatch):
    drawn = {}

    def spy(spikes, image, path, **about):
        drawn.update(spikes=spikes, image=image, **about)

    monkeypatch.setattr(plots, "spike_raster", spy)
    train.run(_config(), tmp_path)
    split = fake.load(size=4, channels=1).test
    want = split.gather(split.resident, np.zeros(1, np.uint32))
    np.testing.assert_allclose(drawn["image"], want["image"][0], rtol=1e-6)
    assert drawn["label"] == int(want["label"][0])
    (spikes,) = drawn["spikes"].values()
    np.testing.assert_array_equal(spikes, np.asarray(want["image"]) > 0.5)


def test_frames_are_drawn_as_their_mean(toy, tmp_path):
    train.run(_config(data__timesteps=3, model__timesteps=3), tmp_path)
    assert (tmp_path / "figures" / "spike_raster.png").exists()


def test_without_matplotlib_a_run_ends_well(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    train.run(_config(), tmp_path)
    assert "no figures: matplotlib is not installed" in capsys.readouterr().err
    assert (tmp_path / "result.json").exists()
