"""The whole command on a toy, and what the columnar model calls its features."""

import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax import models
from a2os2a_jax.commands import probe
from a2os2a_jax.train import checkpoint, loop, metrics, setup, step

pytestmark = pytest.mark.usefixtures("quick_compilation")


# ---- features


def _lively(shapes):
    """Variables with which neurons fire, unlike those of an untrained model."""
    rng = np.random.RandomState(0)

    def fill(path, leaf):
        name = path[-1].key
        low, high = {"kernel": (-1, 1), "bias": (0, 1)}.get(name, (0.5, 1.0))
        return rng.uniform(low, high, leaf.shape).astype("float32")

    return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.mark.parametrize("readout", ["mean", "query"])
def test_features_are_what_the_head_reads(readout):
    options = dict(image_size=8, in_channels=1, heads=2, pool="0001", readout=readout)
    model = models.build("columnar", "1-16", num_classes=3, timesteps=3, **options)
    images = np.random.RandomState(1).randn(2, 8, 8, 1).astype("float32")
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    assert set(shapes) == {"params", "batch_stats"}  # init sows nothing
    variables = _lively(shapes)

    @jax.jit
    def run(variables, images):
        both = model.apply(variables, images, mutable=["features", "spikes"])
        each = model.apply(variables, images, per_step=True, mutable=["features"])
        return both, model.apply(variables, images), each

    found = jax.device_get(run(variables, images))
    (logits, sown), plain, (_, each) = found
    (features,), (spikes,) = (
        sown["features"]["out"],
        sown["spikes"]["block_0"]["out_neuron"]["out"],
    )
    assert features.shape == (2, 16) and 0 < spikes.mean() < 1
    read = spikes.mean(2) if readout == "mean" else spikes[:, :, -1]
    np.testing.assert_allclose(features, read.mean(1), rtol=1e-6)
    head = nn.Dense(3)
    by_hand = head.apply({"params": variables["params"]["head"]}, features)
    np.testing.assert_array_equal(by_hand, logits)
    np.testing.assert_array_equal(plain, logits)  # sowing changes nothing
    np.testing.assert_array_equal(each["features"]["out"][0], features)


# ---- the command


class Toy(nn.Module):
    """Compiles at once; its features are random sums of the pixels."""

    num_classes: int
    frozen = ()

    @nn.compact
    def __call__(self, x, train=False):
        self.variable("batch_stats", "none", lambda: np.zeros(1, np.float32))
        self.sow("spikes", "out", x)
        self.sow("potentials", "out", x)
        x = nn.relu(nn.Dense(12, name="body")(x.reshape(len(x), -1)))
        self.sow("features", "out", x)
        return nn.Dense(self.num_classes, name="head")(x)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    def build(*_, num_classes, **__):
        return Toy(num_classes)

    monkeypatch.setattr(setup, "build", build)


def config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=8, channels=1, classes=4)
    c.train.update(batch=64, log_steps=2, steps=2)
    c.eval.update(shots="1,5", draws=3)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "build", lambda *_, num_classes, **__: Toy(num_classes))
        loop.run(config(), workdir)
    return workdir


def test_a_probe_prints_a_table_and_adds_a_line(trained, capsys):
    log = trained / "evaluations.jsonl"
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file() and p != log}
    record = probe.run(config(), trained)
    assert metrics.read_lines(log)[-1] == record
    after = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file() and p != log}
    assert after == before
    assert (record["mode"], record["step"], record["split"]) == ("probe", 2, "test")
    assert (record["count"], record["classes"], record["shots"]) == (100, 4, [1, 5])
    for kind in ("accuracy", "accuracy_of_inputs"):
        few, more = (record[kind][k] for k in ("1", "5"))
        assert len(few) == len(more) == 3 and np.mean(more) > np.mean(few) > 0.25
        assert np.std(few) > 0  # draws are draws
    assert record["accuracy"] != record["accuracy_of_inputs"]
    out = capsys.readouterr().out
    assert "features  " in out and "raw inputs" in out
    mean = 100 * np.mean(record["accuracy"]["5"])
    spread = 100 * np.std(record["accuracy"]["5"], ddof=1)
    assert f"{mean:.2f} ± {spread:.2f} % (3 draws)" in out
    assert f"wrote a line to {log}" in out and "next: " in out
    assert "was trained on fake, with all labels" in out
    assert probe.run(config(seed=0), trained) == record  # again the same examples


def test_features_are_those_of_the_checkpoint(trained, monkeypatch):
    seen = {}

    def extract(model, variables, *_, sound=probe.probe.extract, **options):
        seen["kernel"] = variables["params"]["body"]["kernel"]
        return sound(model, variables, *_, **options)

    monkeypatch.setattr(probe.probe, "extract", extract)
    probe.run(config(eval__shots="1", eval__draws=1), trained)
    abstract = setup.prepare(config()).abstract_state()
    _, state = checkpoint.Checkpoints(trained / "checkpoints").restore(abstract)
    np.testing.assert_array_equal(seen["kernel"], state.params["body"]["kernel"])


def test_another_set_may_have_other_classes(trained, capsys):
    record = probe.run(config(eval__data="digits", eval__examples=120), trained)
    assert (record["data"], record["classes"], record["count"]) == ("digits", 10, 120)
    assert np.mean(record["accuracy"]["5"]) > 0.4
    out = capsys.readouterr().out
    assert "with all labels" not in out and "50" in out  # labelled examples


def test_features_that_never_vary_are_pointed_out(trained, capsys, monkeypatch):
    def extract(*args, sound=probe.probe.extract, **options):
        found = sound(*args, **options)
        return found._replace(features=0 * found.features)

    shots = config(eval__shots="1", eval__draws=1)
    probe.run(shots, trained)
    assert "the same for every example" not in capsys.readouterr().out
    monkeypatch.setattr(probe.probe, "extract", extract)
    probe.run(shots, trained)
    assert "the same for every example" in capsys.readouterr().out


def test_one_draw_has_no_spread(trained, capsys):
    probe.run(config(eval__draws=1, eval__shots="3"), trained)
    out = capsys.readouterr().out
    assert "±" not in out and "one draw" in out


def test_inputs_that_are_too_large_are_left_out(trained, capsys, monkeypatch):
    monkeypatch.setattr(probe.probe, "fits", lambda *_: False)
    record = probe.run(config(), trained)
    assert record["accuracy_of_inputs"] is None
    assert "raw inputs left out" in capsys.readouterr().out
    json.dumps(record)


WRONG = {
    "shots": (dict(eval__shots="1,99"), "eval.shots: got 99, expected at most 64"),
    "no number": (dict(eval__shots="some"), "eval.shots: got 'some'"),
    "train": (dict(eval__split="train"), "eval.split: got 'train', expected another"),
    "average": (dict(eval__average=2), "eval.average: got 2, expected 1"),
    "checkpoint": (dict(eval__checkpoint="7"), "eval.checkpoint: got .*@7, expected"),
    "best": (dict(eval__checkpoint="best"), "eval.checkpoint: .*no checkpoint has a"),
    "another config": (dict(optim__lr=0.5), "another config: optim.lr was 0.001"),
    "channels": (dict(eval__data="recall"), "got .* of recall|recall of .* channels"),
    "examples": (dict(eval__examples=101), "eval.examples: got 101, expected 1 to 100"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_probed_is_one_line(trained, what):
    log = trained / "evaluations.jsonl"
    before = log.read_bytes() if log.exists() else None
    changes, words = WRONG[what]
    with pytest.raises(ValueError, match=words):
        probe.run(config(**changes), trained)
    assert (log.read_bytes() if log.exists() else None) == before


def test_where_no_run_is_nothing_is_probed(tmp_path):
    with pytest.raises(ValueError, match="got no config.json, expected a run to load"):
        probe.run(config(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_average_of_the_weights_is_probed_unless_told_otherwise(tmp_path, capsys):
    parts = setup.prepare(config())
    state = parts.fresh_state(jax.random.key(0))
    state = state._replace(ema=jax.tree.map(lambda x: x + 1, state.variables))
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(4, state)
    (tmp_path / "config.json").write_text(json.dumps(configs.to_json(config())))
    assert isinstance(state, step.TrainState)
    assert probe.run(config(), tmp_path)["weights"] == "average"
    assert probe.run(config(eval__ema=False), tmp_path)["weights"] == "plain"
    assert "(average weights)" in capsys.readouterr().out


def test_features_of_other_data_are_probed_on_purpose_alone(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained, tmp_path / "run")
    path = workdir / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stamp": "1 files, a"}))
    with pytest.raises(ValueError, match="other data: stamp was '1 files, a', is ''"):
        probe.run(config(), workdir)
    record = probe.run(config(data__changed=True), workdir)
    assert record["changed"] == {"data.changed": ["stamp was '1 files, a', is ''"]}
    assert "as data.changed says" in capsys.readouterr().out
