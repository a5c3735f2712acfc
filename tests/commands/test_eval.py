import json

import flax.linen as nn
import numpy as np
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax.commands import eval as evaluation
from a2os2a_jax.train import loop, metrics, setup


class Toy(nn.Module):
    """Compiles at once."""

    frozen = ()

    @nn.compact
    def __call__(self, x, train=False):
        self.variable("batch_stats", "none", lambda: np.zeros(1, np.float32))
        self.sow("spikes", "out", x)
        self.sow("potentials", "out", x)
        return nn.Dense(10)(x.reshape(len(x), -1))


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(setup, "build", lambda *_, **__: Toy())


def _config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=4, channels=1)
    c.train.update(batch=64, log_steps=2)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


@pytest.fixture
def trained(tmp_path):
    return tmp_path, loop.run(_config(), tmp_path)


def test_each_evaluation_adds_a_line_and_changes_nothing_else(trained):
    workdir, result = trained
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    evaluation.run(_config(), workdir)
    evaluation.run(_config(eval__batch=7), workdir)
    evaluation.run(_config(eval__examples=30), workdir)
    evaluation.run(_config(eval__split="train"), workdir)
    log = workdir / "evaluations.jsonl"
    first, again, few, train = metrics.read_lines(log)
    assert {k: first[k] for k in result["test"]} == result["test"]
    assert again == pytest.approx(first) and few["count"] == 30
    assert (train["split"], train["count"]) == ("train", 256)
    assert (train["step"], train["device"]) == (4, result["device"])
    after = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p != log}
    assert after == before


def test_the_last_checkpoint_of_a_stopped_run_is_scored(tmp_path, capsys):
    loop.run(_config(train__stop_after=2), tmp_path)
    assert evaluation.run(_config(), tmp_path)["step"] == 2
    assert "step 2, test: accuracy" in capsys.readouterr().out


def test_another_config_is_refused(trained):
    with pytest.raises(ValueError, match="another config: optim.lr was 0.001, is 0.5"):
        evaluation.run(_config(optim__lr=0.5), trained[0])
    assert not (trained[0] / "evaluations.jsonl").exists()


def test_a_run_without_a_checkpoint_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(configs.to_json(_config())))
    with pytest.raises(ValueError, match="got no checkpoint, expected one that loads"):
        evaluation.run(_config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
