import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax import main
from a2os2a_jax.commands import preview
from a2os2a_jax.train import setup, workdir

pytestmark = pytest.mark.usefixtures("quick_compilation")
ROOT = Path(__file__).resolve().parents[2]


def config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=8, channels=1, classes=4)
    c.model.update(variant="1-16", timesteps=2, heads=2, pool="0001")
    c.train.batch = 16
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def test_it_shows_the_first_batch_of_training(tmp_path, capsys):
    c = config(augment__flip=True, augment__shift=1.0)
    seen = preview.run(c, str(tmp_path))
    parts = setup.prepare(c)
    from a2os2a_jax.data import pipeline

    index = pipeline.train_indices(0, seed=0, size=256, batch=16)
    split = parts.dataset.train
    plain = split.gather(split.resident, split.fetch(index))
    np.testing.assert_array_equal(seen["labels"], plain["label"])
    key = jax.random.fold_in(jax.random.split(jax.random.key(0))[1], 0)
    moved = parts.inputs.augment(key, plain["image"])
    np.testing.assert_allclose(seen["images"], moved, atol=1e-5)
    assert (tmp_path / "figures" / "preview.png").stat().st_size > 3000
    out = capsys.readouterr().out
    assert "16 of 256 training examples [8, 8, 1]" in out and "preview.png" in out


def test_without_augmentation_they_are_the_data(tmp_path):
    c = config()
    seen = preview.first(c, setup.prepare(c))
    assert seen["images"].std() > 1 and seen["targets"].shape == (16,)


def test_mixed_examples_say_of_what(tmp_path):
    c = config(augment__mixup=0.5)
    parts = setup.prepare(c)
    seen = preview.first(c, parts)
    assert seen["targets"].shape == (16, 4)
    np.testing.assert_allclose(seen["targets"].sum(1), 1, atol=1e-6)
    titles = [preview._title(t, tuple("abcd")) for t in seen["targets"]]
    assert any("%" in title for title in titles)


@pytest.mark.parametrize("channels", [2, 3])
def test_frames(tmp_path, channels):
    c = config(data__timesteps=2, data__channels=channels)
    seen = preview.run(c, str(tmp_path))
    assert seen["images"].shape == (16, 2, 8, 8, channels)


def test_mixing_stops_at_its_epoch():
    c = config(augment__mixup=0.5, augment__off_epoch=1)
    parts = setup.prepare(c)
    assert parts.inputs.mix_until == 16  # 256 / 16
    before, after = (preview.first(c, parts, step) for step in (15, 16))
    assert ((before["targets"] > 0.01).sum(1) == 2).any()
    assert (after["targets"].max(1) == 1).all()


def test_tokens_cannot_be_drawn(tmp_path):
    spec = importlib.util.spec_from_file_location("r", ROOT / "configs" / "recall.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ValueError, match="got recall, whose examples are tokens"):
        preview.run(module.get_config("smoke"), str(tmp_path))


def test_a_preview_does_not_take_the_workdir(tmp_path):
    c = config()
    preview.run(c, str(tmp_path / "run"))
    assert workdir.is_free(tmp_path / "run")
    assert workdir.claim(tmp_path / "run", c) is None
    (tmp_path / "run" / "figures" / "mine.png").write_bytes(b"")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(ValueError, match="is not empty"):
        workdir.claim(tmp_path / "run", c)


def test_the_mode_is_known():
    assert "preview" in main.MODES and "preview" not in main.LATER


def test_odd_names_of_classes_stay_on_their_line():
    names = ("a\nb", "caf\udce9")
    assert preview._title(np.int32(0), names) == "a b"
    assert preview._title(np.array([0.6, 0.4]), names) == "a b 60 %\ncaf\\xe9 40 %"
