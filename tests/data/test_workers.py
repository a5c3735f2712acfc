"""Training from files that other processes read, as the command line starts it."""

import json
import multiprocessing

import flax.linen as nn
import numpy as np
import pytest

from a2os2a_jax import main
from a2os2a_jax.analysis import plots
from a2os2a_jax.train import setup

pytestmark = pytest.mark.usefixtures("quick_compilation")
STEPS, BATCH = 5, 4


class Toy(nn.Module):
    """Compiles at once."""

    frozen = ()

    @nn.compact
    def __call__(self, x, train=False):
        self.variable("batch_stats", "none", lambda: np.zeros(1, np.float32))
        self.sow("spikes", "out", (x if x.ndim == 5 else x[:, None]) > 0.5)
        self.sow("potentials", "out", x)
        return nn.Dense(4)(x.reshape(len(x), -1))


@pytest.fixture
def pictures(encode):
    """Four classes of five, one of which is no whole picture."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (20, 9, 9, 3), np.uint8)
    rows = [(encode(pixels), label % 4) for label, pixels in enumerate(noise)]
    rows[6] = rows[6][0][:40], rows[6][1]
    return rows


@pytest.fixture
def folder(tmp_path, pictures):
    for split, rows in (("train", pictures), ("test", pictures[:4])):
        for i, (encoded, label) in enumerate(rows):
            path = tmp_path / "photos" / split / "abcd"[label] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded)
    return f"folder:{tmp_path / 'photos'}", ()


@pytest.fixture
def tfds(tiny_tfds, pictures):
    splits = {"train": pictures, "test": pictures[:4]}
    where = tiny_tfds("tiny", splits, shape=(None, None, 3))
    return "tfds:tiny", (f"--config.data.data_dir={where}",)


@pytest.mark.parametrize("source", ["folder", "tfds"])
def test_a_run_is_the_same_with_threads_and_with_workers(
    source, request, tmp_path, monkeypatch, capfd
):
    name, where = request.getfixturevalue(source)
    monkeypatch.setattr(setup, "build", lambda *_, **__: Toy())
    for draw in ("training_curves", "spike_raster"):
        monkeypatch.setattr(plots, draw, lambda *_, **__: None)

    def train(folder, *flags):
        argv = ["main", "--config=configs/digits.py", f"--workdir={tmp_path / folder}"]
        argv += [f"--config.data.name={name}", *where, "--config.data.size=8"]
        argv += ["--config.data.area=0.5", "--config.data.corrupt=skip"]
        argv += [f"--config.train.steps={STEPS}", f"--config.train.batch={BATCH}"]
        argv += ["--config.train.log_steps=1", "--config.optim.warmup_epochs=0", *flags]
        assert main.main(argv) == 0, capfd.readouterr().err
        log = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in log]
        return [(r["step"], r["loss"]) for r in rows if r["split"] == "train"]

    threads = train("threads")
    assert [step for step, _ in threads] == list(range(1, STEPS + 1))
    capfd.readouterr()
    flags = ("--config.data.workers=2",)
    starts = 1
    if source == "folder":
        begun = train("workers", *flags, "--config.train.stop_after=2")
        assert begun == threads[:2]
        starts = 2
    assert train("workers", *flags) == threads
    told = [line for line in capfd.readouterr().err.splitlines() if "left out" in line]
    assert 1 <= len(told) <= starts and "6" in told[0]  # for all workers together
    assert not multiprocessing.active_children()
