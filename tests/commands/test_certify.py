"""--mode=certify, on a small model: verdict, table, file, exit code."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax import main, models
from a2os2a_jax.commands import certify
from a2os2a_jax.train import setup
from a2os2a_jax.train import workdir as workdirs
from a2os2a_jax.train.checkpoint import Checkpoints


def config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=8, channels=1, classes=4)
    c.model.update(variant="1-16", heads=2, timesteps=3)
    c.train.update(batch=8, steps=2)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def test_the_folded_model_is_certified(tmp_path, capsys):
    folder = tmp_path / "new"
    record = certify.run(config(), folder)
    assert certify.exit_code(record) == 0
    assert record["verdict"] == "addition-only"
    assert [p["path"] for p in record["products"]] == ["stem/conv_0"]
    assert record["as_trained"]["verdict"] == "not addition-only"
    assert {"stem/bn_0", "head"} <= set(record["as_trained"]["places"])
    assert record["weights"] == "shapes alone, no weights"
    heads = record["heads"]
    assert heads["counts"]["products"] == 16 * 4
    assert heads["counts"]["verdict"] == "not addition-only"
    # 4 tokens, 3 steps, 16 channels, 4 classes: sums, vectors, bias
    assert heads["spikes"] == {
        "verdict": "addition-only",
        "additions": 4 * 3 * 16 * 4 + 4 * 3 * 4 + 4,
        "products": 0,
    }
    assert heads["bits"]["verdict"] == "addition-only"
    assert heads["bits"]["additions"] < heads["spikes"]["additions"]
    written = json.loads((folder / certify.FILE).read_text())
    assert written == json.loads(json.dumps(record))
    out = capsys.readouterr().out
    assert "stem/conv_0" in out and "multiplication-free" in out
    assert f"wrote {folder / certify.FILE}" in out


def test_an_earlier_certificate_is_kept(tmp_path, capsys):
    certify.run(config(), tmp_path)
    first = (tmp_path / certify.FILE).read_bytes()
    certify.run(config(model__neuron__tau=3.0), tmp_path)
    assert (tmp_path / "certificate.1.json").read_bytes() == first
    assert "kept the earlier certificate.json" in capsys.readouterr().out
    certify.run(config(model__neuron__tau=3.0), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # the same again is the same


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (dict(neuron=dict(tau=3.0)), "stem/neuron_0"),
        (dict(neuron=dict(learn_tau=True)), "stem/neuron_0"),
        (dict(neuron=dict(decay_input=True, tau=4 / 3)), None),
        (dict(neuron=dict(rule="guo")), None),
        (dict(neuron=dict(soft_reset=True)), None),
        (dict(attention=dict(kind="a2os2a", k="binary", order="q_kv")), None),
        (dict(attention=dict(kind="a2os2a", normalise="sqrt", k_gain=0.25)), None),
        (dict(attention=dict(kind="a2os2a", normalise="shiftmax")), None),
        (dict(attention="vssa"), None),
        (dict(attention="uniform"), None),
        (dict(attention="none", shortcut="attention"), None),
        (dict(dtype="bfloat16", remat=True), None),
        (dict(image_size=None, stem="tokens", readout="query"), None),
    ],
    ids=str,
)
def test_options(options, place):
    """`place`: where a multiplication remains; None where none does."""
    how = dict(image_size=8, num_classes=4, in_channels=1, heads=2, timesteps=3)
    model = models.build("columnar", "1-16", **how | options)
    shape = (1, 5, 1) if model.stem == "tokens" else (1, 8, 8, 1)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    report = certify.certify(*models.fold(model, variables), shape)
    first = "stem/linear" if model.stem == "tokens" else "stem/conv_0"
    assert [o.path for o in report.allowed] == [first]
    refused = {o.path for o in report.refused}
    assert place is None and not refused or place in refused


def test_the_exit_code_reaches_the_shell(tmp_path, monkeypatch, capsys):
    line = ["main", "--config=configs/digits.py:smoke", "--mode=certify"]
    line += ["--config.model.variant=1-16", f"--workdir={tmp_path / 'a'}"]
    monkeypatch.setattr(certify.models, "head_orders", lambda _: ("spikes",))  # faster
    assert main.main(line) == 0
    bad = [*line[:-1], f"--workdir={tmp_path / 'b'}", "--config.model.neuron.tau=3.0"]
    assert main.main(bad) == 1
    out = capsys.readouterr()
    assert "NOT addition-only" in out.out and not out.err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose checkpoint was never trained."""
    folder, c = tmp_path_factory.mktemp("runs") / "run", config()
    parts = setup.prepare(c)
    workdirs.claim(folder, c)
    checkpoints = Checkpoints(folder / "checkpoints")
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parts.abstract_state())
    checkpoints.save(2, jax.tree.map(jax.numpy.asarray, zeros))
    checkpoints.close()
    return folder


def test_weights_of_a_run_are_folded(run):
    record = certify.run(config(), run)
    assert record["weights"] == "weights of step 2"
    assert record["verdict"] == "addition-only"


def test_a_run_of_another_config_is_refused(run):
    with pytest.raises(ValueError, match="another config: .*model.variant"):
        certify.run(config(model__variant="1-32"), run)


def test_a_checkpoint_of_another_model_is_named(run, tmp_path):
    folder = tmp_path / "run"
    other = config(model__variant="1-32")
    workdirs.claim(folder, other)
    (folder / "checkpoints").symlink_to(run / "checkpoints")
    with pytest.raises(ValueError, match="checkpoint|shape"):
        certify.run(other, folder)


@pytest.mark.parametrize("name", ["imagenet", "cifar10_dvs"])
def test_a_recipe_needs_no_data(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("A2OS2A_DATA", str(tmp_path / "none"))
    monkeypatch.setattr(certify.models, "head_orders", lambda _: ("spikes",))  # faster
    line = ["main", f"--config=configs/{name}.py", "--mode=certify"]
    line += [f"--workdir={tmp_path / 'new'}", "--config.model.variant=1-64"]
    assert main.main([*line, "--config.data.data_dir=nowhere"]) == 0
    record = json.loads((tmp_path / "new" / certify.FILE).read_text())
    size, classes = {"imagenet": (224, 1000), "cifar10_dvs": (None, 10)}[name]
    assert record["data"] == {"imagenet": "imagenet2012"}.get(name, name)
    assert record["heads"]["spikes"]["additions"] % classes == 0
    if size:
        assert record["products"][0]["count"] == (3 * size - 2) ** 2 * 3 * 8


def test_a_certified_folder_is_free_for_a_run(tmp_path):
    certify.run(config(), tmp_path)
    certify.run(config(model__neuron__tau=3.0), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {certify.FILE, "certificate.1.json"}
    assert workdirs.claim(tmp_path, config()) is None  # as training begins
    (tmp_path / "config.json").unlink()
    (tmp_path / "certificate.json.bak").write_text("x")
    assert not workdirs.is_free(tmp_path)


def test_what_only_a_run_has_is_refused_without_one(tmp_path):
    for key, value in {"checkpoint": "77", "timesteps": 3, "size": 16}.items():
        with pytest.raises(ValueError, match=f"eval.{key}: got .* without a run"):
            certify.run(config(**{f"eval__{key}": value}), tmp_path / "new")


def test_a_workdir_that_cannot_be_made_is_found_first(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot be made"):
        certify.run(config(), tmp_path / "file")
    assert not capsys.readouterr().out


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not empty"):
        certify.run(config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
