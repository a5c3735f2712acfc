import json
import math
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax.commands import plan
from a2os2a_jax.modules.norm import BatchNorm
from a2os2a_jax.train import checkpoint, loop, setup


def _config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=8, channels=1, classes=4, validation=32)
    c.model.update(variant="1-16", timesteps=2, heads=2, pool="0001")
    c.optim.update(lr=1e-2, warmup_epochs=0.5)
    c.train.update(batch=32, epochs=2.0, log_steps=1, save_epochs=0.5, keep=3)
    c.eval.epochs = 0.6
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


class Toy(nn.Module):
    """Compiles at once."""

    frozen = ()

    @nn.compact
    def __call__(self, x, train=False):
        x = BatchNorm(name="bn")(x.reshape(len(x), -1), train)
        self.sow("spikes", "out", x)
        self.sow("potentials", "out", x)
        return nn.Dense(4, name="head")(x)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(setup, "build", lambda *_, **__: Toy())


def test_what_is_planned_is_what_training_does(toy, tmp_path, monkeypatch):
    sound, saved = checkpoint.Checkpoints.save, []

    def save(self, step, state, *args):
        saved.append((step, sum(x.nbytes for x in jax.tree.leaves(state)) / 2**20))
        sound(self, step, state, *args)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    config, records = _config(train__ema=0.9, optim__schedule="linear"), []
    planned = plan.run(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == [] and planned["standing"] == "new"
    result = loop.run(config, tmp_path / "run", loggers=[records.append])
    assert (planned["steps"], planned["epoch_steps"]) == (result["steps"], 7)
    assert planned["parameters"] == result["parameters"] == 2 * 64 + 65 * 4
    rates = {r["step"]: r["lr"] for r in records if r["split"] == "train"}
    peak = planned["warmup_steps"]  # steps are counted from 1 in a record
    assert max(rates.values()) == rates[peak + 1]
    at = {"first": rates[1], "peak": rates[peak + 1], "last": rates[14]}
    assert planned["lr"] == pytest.approx(at)
    validated = [r["step"] for r in records if r["split"] == "validation"]
    assert planned["validations"] == len(validated) == 4
    assert planned["validate_steps"] == validated[0]
    assert [step for step, _ in saved] == [4, 8, 12, 14] and planned["saves"] == 4
    assert {mib for _, mib in saved} == {planned["mib"]["checkpoint"]}
    assert planned["judged"] == result["test"]["count"]


def test_memory_is_counted_from_shapes(toy):
    def mib(**changes):
        parts = setup.prepare(_config(**changes))
        return plan.numbers(_config(**changes), parts)["mib"]

    found, unit = mib(), 2**20 / 4  # float32 numbers in a MiB
    count = 2 * 64 + 65 * 4
    assert found["parameters"] * unit == count and found["average"] == 0
    assert found["statistics"] * unit == 2 * 64
    assert found["optimizer"] * unit == pytest.approx(2 * count, abs=4)  # and counters
    assert mib(optim__name="sgd")["optimizer"] < found["optimizer"] / 1.9
    assert mib(train__ema=0.9)["average"] * unit == count + 2 * 64
    of_state = sum(v for k, v in found.items() if k not in ("data", "checkpoint"))
    assert found["checkpoint"] == pytest.approx(of_state, abs=8 / 2**20)  # the step
    digits = dict(data__name="digits", data__size=8, data__classes=None)
    digits |= dict(data__channels=None, data__validation=37)
    everything = 1797 * (64 + 4)  # bytes, and labels of four
    assert mib(**digits)["data"] * 2**20 == everything


def test_decayed_and_frozen_parameters_are_counted():
    def counts(**changes):
        n = plan.numbers(_config(**changes), setup.prepare(_config(**changes)))
        return n["decayed"], n["frozen"]

    convs = 9 * (1 * 2 + 2 * 4 + 4 * 8 + 8 * 16 + 16 * 16)
    linear = 4 * 16 * 16 + 2 * 16 * 64 + 16 * 4
    norms = 2 * (2 + 4 + 8 + 16 + 16)
    assert counts() == (convs + linear, 0)
    assert counts(optim__freeze="stem/.*, head/bias") == (linear, convs + norms + 4)
    kind = dict(model__attention__kind="frozen_qk")
    assert counts(**kind) == (convs + linear - 512, 512)


def test_the_plan_says_what_a_person_decides_on(capsys):
    changes = dict(train__accumulate=4, train__loss="tet", train__ema=0.99)
    changes |= dict(train__stop_after=5, augment__flip=True, optim__clip=1.0)
    changes |= dict(optim__freeze="head/bias", eval__examples=50)
    plan.run(_config(**changes))
    out = capsys.readouterr().out
    text = " ".join(out.split())
    for words in (
        "head linear [B, 4] 68 16x4 + 4 (frozen)",
        "4 of them frozen",
        "224 training, 100 test, 32 validation examples [8, 8, 1], 4 classes",
        "a2os2a: q=binary, k=relu, v=ternary, order=auto",
        "paper: tau=2.0, v_th=1.0",
        "batch 32 = 4 x 8; BN takes its statistics from 8 examples at a time",
        "14, that is 2 epochs of 7 steps",
        "ends early, after step 5 (train.stop_after)",
        "adamw, weight decay 0.06 on ",
        " parameters, 4 frozen, gradient norm up to 1",
        "1e-06 at the first step, linear to 0.01 after 4 steps, cosine to ",
        "tet, label smoothing 0, tet_mse 0.05, average 0.99",
        "Activations come on top and are not counted",
        "after every 4 steps and at the end, 4 times, ",
        "the last 3 and the best on the validation split stay: at most ",
        ", an estimate",
        "after every 4 steps and at every save: 4 times 32 examples",
        "50 examples of test are scored, with the average of the weights",
        "wrote nothing",
        "augment flip=True",
    ):
        assert words in text, words
    assert out.splitlines()[-1].startswith("next: the same command without --mode=plan")
    assert max(map(len, out.splitlines())) <= 88


def test_what_cannot_be_trained_cannot_be_planned():
    with pytest.raises(ValueError, match="model.heads: got 5, expected a divisor"):
        plan.run(_config(model__heads=5))


# ---- the workdir


def test_a_plan_says_how_far_the_run_is(toy, tmp_path, capsys):
    def standing(**changes):
        capsys.readouterr()
        found = plan.run(_config(**changes), tmp_path)["standing"]
        return found, " ".join(capsys.readouterr().out.split())

    assert standing()[0] == "new"
    loop.run(_config(train__stop_after=5), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    found, text = standing()
    assert found == "started" and "a checkpoint of step 5 of 14 (36 %)" in text
    assert text.endswith("next: the same command without --mode=plan goes on with it")
    found, text = standing(optim__lr=0.5)
    assert found == "taken" and "optim.lr was 0.01, is 0.5" in text
    assert text.endswith("next: the same command with another --workdir")
    path = tmp_path / "data.json"
    known = path.read_text()
    path.write_text(json.dumps(json.loads(known) | {"stamp": "1 files, a"}))
    found, text = standing()
    assert found == "taken" and "stamp was '1 files, a', is ''" in text
    assert standing(data__changed=True)[0] == "started"
    path.write_text(known)
    loop.run(_config(), tmp_path)
    found, text = standing()
    assert found == "finished" and "finished after 14 steps" in text
    assert text.endswith("next: the same command with --mode=eval scores it again")
    assert before.keys() <= {p for p in tmp_path.rglob("*") if p.is_file()} | {
        p for p in before if "checkpoints" in p.parts
    }


def test_standing_looks_and_touches_nothing(tmp_path):
    config = _config()
    file, other, begun = (tmp_path / n for n in ("file", "other", "begun"))
    file.write_text("precious")
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    begun.mkdir()
    (begun / "config.json").write_text(json.dumps(configs.to_json(config)))
    assert plan.standing(config, tmp_path / "no", 9)[0] == "new"
    assert plan.standing(config, file, 9) == (
        "taken",
        f"{file} is a file: take another",
    )
    assert "files that no run made" in plan.standing(config, other, 9)[1]
    found, text = plan.standing(config, begun, 9)
    assert found == "started" and "without a checkpoint" in text
    found, text = plan.standing(_config(seed=3), begun, 9)
    assert found == "new" and "nothing was trained with another config" in text
    (begun / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: got '{', expected one JSON"):
        plan.standing(config, begun, 9)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        *("begun", "config.json", "file", "other", "thesis.tex")
    ]


MAIN = "/somewhere/a2os2a_jax/main.py"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--config=c.py", "--mode=plan"], "--config=c.py --workdir=runs/x"),
        (["--mode", "plan", "--config", "c.py"], "--config c.py --workdir=runs/x"),
        (["--workdir=w", "-mode=plan", "--config=c.py"], "--workdir=w --config=c.py"),
        (
            ["--config=c.py", "--config.optim.freeze=a.*, b", "--mode=plan"],
            "--config=c.py '--config.optim.freeze=a.*, b' --workdir=runs/x",
        ),
        (
            ["--config.model.x=--mode=plan"],
            "--config.model.x=--mode=plan --workdir=runs/x",
        ),
    ],
)
def test_the_command_is_the_same_without_the_mode(argv, line):
    expected = f"python -m a2os2a_jax.main {line}"
    assert plan.command([MAIN, *argv], "runs/x") == expected


@pytest.mark.parametrize("argv", [[], ["pytest", "-q"], ["/x/main.py", "--mode=plan"]])
def test_the_command_of_another_program_is_not_ours(argv):
    assert plan.command(argv, "runs/x") is None


def test_the_command_stands_at_the_end(toy, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [MAIN, "--config=c.py", "--mode=plan"])
    plan.run(_config())
    *_, line, what = capsys.readouterr().out.splitlines()
    assert line == "next: python -m a2os2a_jax.main --config=c.py --workdir=runs/fake"
    assert what.strip() == "trains it"


def test_saves_are_validated_too(toy):
    found = plan.run(_config(train__steps=70, train__save_epochs=12 / 7))
    assert found["save_steps"] == 12 and found["validate_steps"] == 4
    at = {n for n in range(1, 71) if n % 12 == 0 or n % 4 == 0 or n == 70}
    assert found["validations"] == len(at)


def test_a_run_of_one_step_without_warm_up_has_a_plan(toy, capsys):
    found = plan.run(_config(train__steps=1, optim__warmup_epochs=0.0))
    assert found["lr"] == pytest.approx(dict(first=1e-2, peak=1e-2, last=1e-2))
    assert (found["saves"], found["validations"]) == (1, 1)
    out = " ".join(capsys.readouterr().out.split())
    assert "no warm-up" in out and "at the end, once," in out
    assert math.isfinite(found["mib"]["checkpoint"]) and np.isfinite(found["decayed"])
