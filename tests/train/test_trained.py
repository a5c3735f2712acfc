"""Which weights `eval.*` chooses, and what it scores them on."""

import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax.interop import weights as files
from a2os2a_jax.train import finetune, setup, trained
from a2os2a_jax.train.checkpoint import Checkpoints


class Toy(nn.Module):
    """Linear in the pixels' mean, or in every pixel with `flat`."""

    classes: int
    timesteps: int
    pool: str
    flat: bool = False
    frozen = ()

    @nn.compact
    def __call__(self, x, train=False, per_step=False):
        self.variable("batch_stats", "mean", lambda: np.zeros(1, np.float32))
        x = x.reshape(len(x), -1) if self.flat else x.mean((-3, -2))
        return nn.Dense(self.classes, name="head")(x)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """Models are toys; toy["flat"] = True gives the other kind."""
    how = {}

    def build(*_, num_classes, timesteps, pool, image_size, **__):
        pool = pool or ("1111" if image_size and image_size >= 64 else "0011")
        return Toy(num_classes, timesteps, pool, **how)

    monkeypatch.setattr(setup, "build", build)
    return how


def _config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=8, channels=1)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def _make(folder, config, ema=None):
    """A run of `config` with checkpoints 1, 2 and 4, whose parameters are the step."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(configs.to_json(config)))
    parts = setup.prepare(config)
    state = parts.fresh_state(jax.random.key(0))
    with Checkpoints(folder / "checkpoints", keep=None) as c:
        for step in (1, 2, 4):
            filled = jax.tree.map(lambda x, s=step: np.full_like(x, s), state.variables)
            new = state._replace(**filled)
            if ema is not None:
                new = new._replace(ema=jax.tree.map(lambda x: x + ema, filled))
            c.save(step, new, {})
    return folder


@pytest.fixture(scope="module")
def _saved(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            setup,
            "build",
            lambda *_, **k: Toy(k["num_classes"], k["timesteps"], "0011"),
        )
        yield _make(tmp_path_factory.mktemp("trained") / "run", _config())


@pytest.fixture
def run(_saved, tmp_path):
    """A copy of a run with checkpoints 1, 2 and 4, whose parameters are the step."""
    return shutil.copytree(_saved, tmp_path / "run")


def _value(found):
    """The one number that all parameters and statistics are."""
    values = np.concatenate([np.ravel(x) for x in jax.tree.leaves(found.variables)])
    np.testing.assert_allclose(values, values[0], rtol=1e-6)
    return values[0]


@pytest.mark.parametrize(
    ("checkpoint", "count", "steps"),
    [
        ("last", 1, (4,)),
        ("2", 1, (2,)),
        ("last", 2, (2, 4)),
        ("last", 3, (1, 2, 4)),
        ("2", 2, (1, 2)),
    ],
)
def test_checkpoints_asked_for_and_their_mean(run, checkpoint, count, steps):
    found = trained.load(_config(eval__checkpoint=checkpoint, eval__average=count), run)
    assert found.steps == steps
    assert _value(found) == pytest.approx(np.mean(steps))
    assert found.weights == "weights"
    assert found.changed == ({"average": count} if count > 1 else {})


def test_best_is_what_the_checkpoints_say(run, monkeypatch):
    with pytest.raises(ValueError, match="got 'best', expected 'last' or a step: no"):
        trained.load(_config(eval__checkpoint="best"), run)
    monkeypatch.setattr(Checkpoints, "best", lambda self: 2)
    found = trained.load(_config(eval__checkpoint="best"), run)
    assert (found.steps, _value(found)) == ((2,), 2)


@pytest.mark.parametrize("step", ["3", "", "-1", "first"])
def test_a_checkpoint_that_is_not_there(run, step):
    with pytest.raises(
        ValueError, match=f"got '{step}', expected .* there is: 1, 2, 4"
    ):
        trained.load(_config(eval__checkpoint=step), run)


def test_more_checkpoints_than_there_are(run):
    for checkpoint, most in (("last", 3), ("2", 2)):
        config = _config(eval__checkpoint=checkpoint, eval__average=4)
        with pytest.raises(ValueError, match=f"got 4, expected at most {most}, the"):
            trained.load(config, run)


def test_a_broken_checkpoint_is_passed_over_only_as_the_last(run, capsys):
    for file in (run / "checkpoints/4").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert trained.load(_config(), run).steps == (2,)
    assert trained.load(_config(eval__average=2), run).steps == (1, 2)
    with pytest.raises((ValueError, OSError), match="4"):
        trained.load(_config(eval__checkpoint="4"), run)
    capsys.readouterr()


def test_the_moving_average_is_scored_where_there_is_one(tmp_path, monkeypatch):
    plain = setup.Parts.abstract_state
    monkeypatch.setattr(
        setup.Parts,
        "abstract_state",
        lambda self: plain(self)._replace(ema=plain(self).variables),
    )
    run = _make(tmp_path / "run", _config(), ema=10)
    found = trained.load(_config(), run)
    assert (_value(found), found.weights, found.changed) == (14, trained.EMA, {})
    assert _value(trained.load(_config(eval__average=2), run)) == 13
    found = trained.load(_config(eval__ema=False), run)
    assert (_value(found), found.weights) == (4, trained.PLAIN)
    assert found.changed == {"ema": False}


def _averaged(tmp_path):
    return str(_make(tmp_path / "source", _config(train__ema=0.5), ema=10))


def test_of_weights_elsewhere_eval_ema_takes_the_average_or_not(tmp_path, capsys):
    source = _averaged(tmp_path)
    plain = str(_make(tmp_path / "plain", _config()))

    def load(path, ema):
        config = _config(init_from=path, eval__ema=ema)
        return trained.load(config, tmp_path / "none")

    average, weights = (load(source, ema) for ema in (True, False))
    assert [_value(found) for found in (average, weights)] == [14, 4]
    assert (average.weights, average.changed) == (trained.EMA, {})
    assert (weights.weights, weights.changed) == (trained.PLAIN, {"ema": False})
    assert average.about["weights"] == "average" and weights.about["weights"] == "plain"
    said = capsys.readouterr().out.splitlines()
    assert f"{trained.EMA} of {source}" in said and f"weights of {source}" in said
    for ema in (True, False):  # there is one set: it is the plain one
        found = load(plain, ema)
        assert _value(found) == 4 and (found.weights, found.changed) == ("weights", {})


def test_an_average_alone_is_not_scored_as_if_it_were_plain(tmp_path):
    kept = str(tmp_path / "kept.npz")
    files.save(kept, *finetune.source(_averaged(tmp_path)))
    found = trained.load(_config(init_from=kept), tmp_path / "none")
    assert found.weights == trained.EMA and _value(found) == 14
    with pytest.raises(ValueError, match="eval.ema: got False, expected True: .*kept"):
        trained.load(_config(init_from=kept, eval__ema=False), tmp_path / "none")


def test_another_data_set(run):
    pytest.importorskip("sklearn")
    config = _config(eval__data="digits", eval__examples=350)
    found = trained.load(config, run)
    assert found.parts.dataset.name == "digits" and found.changed == {"data": "digits"}
    assert found.parts.dataset.shape == (8, 8, 1)  # as large as in training
    assert found.parts.evaluator(config, "test").size == 350  # fake has 100 test images
    config.eval.size = 16
    found = trained.load(config, run)
    assert found.parts.dataset.shape == (16, 16, 1)
    assert found.changed == {"data": "digits", "size": 16}


def test_a_validation_split_of_another_data_set_is_that_of_the_config(tmp_path):
    pytest.importorskip("sklearn")
    config = _config(data__validation=50)
    run = _make(tmp_path / "run", config)
    config.eval.data = "digits"
    assert trained.load(config, run).parts.dataset.validation is None
    config.eval.split = "validation"
    assert trained.load(config, run).parts.dataset.validation.size == 50


def test_the_own_data_set_is_no_other(run):
    assert trained.load(_config(eval__data="fake", eval__size=8), run).changed == {}


def test_another_data_set_has_as_many_classes_and_channels(tmp_path):
    pytest.importorskip("sklearn")
    three = _make(tmp_path / "three", _config(data__classes=3))
    with pytest.raises(ValueError, match="eval.data=digits: .* 3 classes, expected"):
        trained.load(_config(data__classes=3, eval__data="digits"), three)
    rgb = _make(tmp_path / "rgb", _config(data__channels=3))
    message = (
        "eval.data: got digits of 10 classes and 1 channels, expected as many as fake "
        "has, .*: 10 classes and 3 channels"
    )
    with pytest.raises(ValueError, match=message):
        trained.load(_config(data__channels=3, eval__data="digits"), rgb)


def test_an_unknown_data_set_or_one_of_another_kind(run):
    with pytest.raises(
        ValueError, match="eval.data=mnost: .* is unknown, expected one of"
    ):
        trained.load(_config(eval__data="mnost"), run)
    with pytest.raises(ValueError, match="eval.data=recall: model.stem: 'sps' got"):
        trained.load(_config(eval__data="recall"), run)


def test_another_number_of_timesteps(run):
    found = trained.load(_config(eval__timesteps=9), run)
    assert found.parts.model.timesteps == 9 and found.changed == {"timesteps": 9}
    assert trained.load(_config(eval__timesteps=4), run).changed == {}


def test_frames_have_a_number_of_their_own(tmp_path):
    how = dict(data__timesteps=4)
    run = _make(tmp_path / "run", _config(**how))
    with pytest.raises(ValueError, match="eval.timesteps=9: .*frames"):
        trained.load(_config(eval__timesteps=9, **how), run)


def test_another_resolution_keeps_the_stem(run):
    found = trained.load(_config(eval__size=64), run)
    assert found.parts.dataset.shape == (64, 64, 1) and found.changed == {"size": 64}
    assert found.parts.model.pool == "0011"  # by default it would be 1111 from 64 on


def test_weights_that_depend_on_the_resolution_are_named(tmp_path, toy):
    toy["flat"] = True
    run = _make(tmp_path / "run", _config())
    message = r"eval.size: got params/head/kernel of shape \(256, 10\), expected \(64"
    with pytest.raises(ValueError, match=message):
        trained.load(_config(eval__size=16), run)


def test_tokens_have_no_resolution(tmp_path):
    how = dict(data__name="recall", data__size=None, data__channels=None)
    config = _config(**how, data__pairs=2, model__stem="tokens")
    run = _make(tmp_path / "run", config)
    config.eval.size = 8
    with pytest.raises(ValueError, match="eval.size: got 8, expected None"):
        trained.load(config, run)
