"""Trained models are found without their data."""

import json
import shutil

import jax
import numpy as np
import pytest

pytest.importorskip("PIL")
from a2os2a_jax import config as configs  # noqa: E402
from a2os2a_jax import data  # noqa: E402
from a2os2a_jax.data.pipeline import Spec  # noqa: E402
from a2os2a_jax.interop import export, weights  # noqa: E402
from a2os2a_jax.train import finetune, inference, loop, setup, workdir  # noqa: E402
from tests import forged  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(workdir, its config, {step: variables}), of which the data are gone."""
    root = tmp_path_factory.mktemp("forged")
    c = forged.config(forged.pictures(root / "photos"))
    kept = forged.run(root / "run", c)
    (root / "photos").rename(root / "elsewhere")
    return root / "run", c, kept


def same(got, want):
    got, want = (jax.tree.leaves(jax.device_get(dict(t))) for t in (got, want))
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_is_loaded_by_its_own_config_and_without_its_data(made):
    folder, c, kept = made
    config = inference.config_of(str(folder))
    assert configs.to_json(config) == configs.to_json(c)
    with pytest.raises(ValueError, match="found no folder"):
        setup.load_data(config)
    ready = inference.load(config, str(folder))
    assert (ready.name, ready.about["step"], ready.exported) == ("run", 6, None)
    assert ready.spec.class_names == forged.NAMES and ready.spec.shape == (8, 8, 3)
    assert ready.model.num_classes == 3 and ready.model.timesteps == 2
    same(ready.variables, kept[6])
    config.eval.checkpoint = "4"
    same(inference.load(config, str(folder)).variables, kept[4])


def test_a_run_without_data_json_loads_its_data(made, tmp_path, monkeypatch):
    folder, c, _ = made
    shutil.copytree(folder, tmp_path / "old")
    (tmp_path / "old" / workdir.DATA).unlink()
    with pytest.raises(ValueError, match="found no folder"):
        inference.load(c, str(tmp_path / "old"))
    asked = []
    monkeypatch.setattr(data, "load", lambda name, **_: asked.append(name))
    monkeypatch.setattr(
        inference.setup, "load_data", lambda config: data.load(config.data.name)
    )
    with pytest.raises(AttributeError):  # of None
        inference.load(c, str(tmp_path / "old"))
    assert asked == [c.data.name]


def test_an_export_and_a_file_are_loaded(made, tmp_path):
    folder, c, kept = made
    ready = inference.load(c, str(folder))
    model, params = inference.folded(ready.model, ready.spec, ready.variables)
    about = {
        "dtype": "float32",
        "config": configs.to_json(c),
        "data": ready.spec.to_json(),
        "step": 6,
    }
    export.write(tmp_path / "e", model, params, ready.spec.shape, about, lambda _: "")
    again = inference.load(
        inference.config_of(str(tmp_path / "e")), str(tmp_path / "e")
    )
    assert again.model == model and again.spec == ready.spec and again.exported
    same(again.variables, params)
    assert again.about["step"] == 6 and len(again.about["sha256"]) == 64

    file = tmp_path / "w.safetensors"
    weights.save(file, kept[6], about)
    held = inference.load(inference.config_of(str(file)), str(file))
    same(held.variables, kept[6])
    assert held.spec == ready.spec and held.name == "w" and held.exported is None
    (tmp_path / "colours").mkdir()
    shutil.copy(file, tmp_path / "colours" / "weights.safetensors")
    where = str(tmp_path / "colours" / "weights.safetensors")
    assert inference.load(c, where).name == "colours"
    (tmp_path / "e" / "model.jaxexport").write_bytes(b"half")
    with pytest.raises(ValueError, match="e: damaged: sha256 is not as in its model"):
        inference.load(c, str(tmp_path / "e"))
    with pytest.raises(ValueError, match="eval.checkpoint: got '4', expected 'last'"):
        c = inference.config_of(str(file))
        c.eval.checkpoint = "4"
        inference.load(c, str(file))


def test_what_is_not_in_the_zoo_is_named():
    with pytest.raises(ValueError, match="^workdir: zoo:none is not there, expected"):
        inference.config_of("zoo:none")


def test_zoo_names_go_to_whoever_knows_them(made, monkeypatch):
    folder, c, kept = made
    about = {
        "config": configs.to_json(c),
        "data": inference.spec_of(c, folder).to_json(),
        "step": 6,
    }
    asked = []

    def source(path):
        asked.append(path)
        return kept[6], dict(about)

    monkeypatch.setattr(finetune, "source", source)
    config = inference.config_of("zoo:colours")
    ready = inference.load(config, "zoo:colours")
    assert ready.name == "colours" and set(asked) == {"zoo:colours"}
    del about["data"]
    with pytest.raises(ValueError, match="zoo:colours: data: got 'None', expected an"):
        inference.load(config, "zoo:colours")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.timesteps", 3, "another config: model.timesteps was 2, is 3"),
        ("seed", 1, "another config: seed was 0, is 1"),
        ("eval.checkpoint", "5", "eval.checkpoint: .* a step there is: 4, 6"),
        ("eval.checkpoint", "best", "no checkpoint has a score"),
        ("eval.average", 2, "eval.average: got 2, expected 1 with"),
        ("eval.timesteps", 4, "eval.timesteps: got 4, expected None with"),
    ],
)
def test_what_it_cannot_honour_is_named(made, key, value, words):
    folder, _, _ = made
    c = inference.config_of(str(folder))
    c.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=words):
        inference.load(c, str(folder))


def test_nothing_there_and_unknown_keys_are_named(tmp_path):
    with pytest.raises(ValueError, match="neither config.json nor model.json, expect"):
        inference.config_of(str(tmp_path))
    with pytest.raises(ValueError, match="x.npz: no such file, expected the DIR of a"):
        inference.config_of(str(tmp_path / "x.npz"))
    whole = configs.to_json(configs.default())
    (tmp_path / "config.json").write_text(json.dumps(whole | {"nonsense": 1}))
    with pytest.raises(ValueError, match="got the keys nonsense, which no one reads"):
        inference.config_of(str(tmp_path))
    del whole["eval"]["draws"]  # of a later version than the run
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert inference.config_of(str(tmp_path)).eval.draws == 5


def test_a_run_that_has_not_trained_yet_is_named(made, tmp_path):
    workdir.write_json(tmp_path / "config.json", configs.to_json(made[1]))
    words = f"^workdir {tmp_path}: no checkpoint yet, expected a run that has trained$"
    with pytest.raises(ValueError, match=words):
        inference.load(made[1], str(tmp_path))


def test_weights_of_another_shape_are_named(made, tmp_path):
    folder, c, kept = made
    other = jax.tree.map(lambda x: x, kept[6])
    other["params"]["head"]["bias"] = np.zeros(4, np.float32)
    about = {"config": configs.to_json(c)}
    about["data"] = inference.spec_of(c, folder).to_json()
    weights.save(tmp_path / "w.npz", other, about)
    with pytest.raises(ValueError, match=r"params/head/bias is \(\(4,\), 'float32'\)"):
        inference.load(c, str(tmp_path / "w.npz"))


def test_training_writes_data_json_before_it_trains_and_loses_none(
    made, tmp_path, monkeypatch
):
    c = configs.default()
    c.data.update(name="fake", size=8, channels=1, classes=4)
    seen = []

    def stop(*_, **__):
        seen.append(json.loads((tmp_path / "r" / workdir.DATA).read_text()))
        raise InterruptedError

    monkeypatch.setattr(loop, "Checkpoints", stop)
    for content in (None, "gone", '{"kept": 1}'):
        if content == "gone":
            (tmp_path / "r" / workdir.DATA).unlink()
        elif content:
            (tmp_path / "r" / workdir.DATA).write_text(content)
        with pytest.raises(InterruptedError):
            loop.run(c, tmp_path / "r")
    spec = data.load("fake", size=8, channels=1, classes=4).spec
    assert seen == [seen[0]] * 3 and Spec.from_json(seen[0]) == spec
    assert json.loads((tmp_path / "r" / "data.1.json").read_text()) == {"kept": 1}
