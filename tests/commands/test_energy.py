"""--mode=energy, on a small run: counts over the whole split, table, file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax import models
from a2os2a_jax.analysis import rates
from a2os2a_jax.commands import energy
from a2os2a_jax.train import setup
from a2os2a_jax.train import workdir as workdirs
from a2os2a_jax.train.checkpoint import Checkpoints
from tests.analysis.test_brute_force import made

pytestmark = pytest.mark.usefixtures("quick_compilation")


def config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=8, channels=1, classes=4)
    c.model.update(variant="1-16", heads=2, timesteps=2)
    c.train.update(batch=8, steps=2)
    c.eval.update(batch=24, examples=40)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def save(folder, c, weights):
    """A run whose checkpoint has these weights; its parts."""
    parts = setup.prepare(c)
    workdirs.claim(folder, c)
    abstract = parts.abstract_state()
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)
    values = weights(parts, abstract)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(2, zeros._replace(step=jnp.int32(2), **values))
    checkpoints.close()
    return parts


def awake(parts, abstract):
    """Weights under which every layer fires."""
    drawn = made(parts.model, jnp.zeros((1, *parts.dataset.shape)))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), drawn)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, save(folder, config(), awake)


def test_the_whole_split_is_counted(run, capsys):
    folder, parts = run
    record = energy.run(config(), folder)
    out = capsys.readouterr().out
    assert json.loads((folder / energy.FILE).read_text()) == json.loads(
        json.dumps(record)
    )
    assert record["count"] == 40  # 24 and then 16, none twice, no padding
    drawn = awake(parts, None)
    split = parts.dataset.test
    batch = split.gather(split.resident, split.fetch(np.arange(40)))
    logits, sown = jax.jit(
        lambda v, x: parts.model.apply(v, x, mutable=["spikes"]),
        compiler_options={"xla_backend_optimization_level": 0},
    )(drawn, batch["image"])
    layers = rates.layers(sown["spikes"])
    assert record["rates"].keys() == layers.keys()
    for name, s in layers.items():
        axes = (0, *range(2, s.ndim))
        found = record["rates"][name]
        np.testing.assert_allclose(found["plus"], (s > 0).mean(axes), atol=2e-3)
        np.testing.assert_allclose(found["minus"], (s < 0).mean(axes), atol=2e-3)
        assert any(found["minus"]) == (found["alphabet"] == "{-1, 0, 1}")
        assert found["neurons"] == np.prod(s.shape[2:])
    right = float((logits.argmax(-1) == batch["label"]).mean())
    assert record["folded_accuracy"] == pytest.approx(right, abs=0.05)
    # Every spike of the MLP's hidden layer goes to each of 16 outputs.
    (hidden,) = (w for w in record["work"] if w["place"] == "block_0/mlp/fc2_linear")
    rate = np.mean(record["rates"]["block_0/mlp/fc1_neuron"]["plus"])
    assert hidden["events"] == pytest.approx(rate * 4 * 2 * 64 * 16)
    assert hidden["possible"] == 4 * 2 * 64 * 16
    total = sum(w["events"] for w in record["work"])
    assert record["sops"] == pytest.approx(total)
    assert record["sops_nonzero"] < record["sops"] < record["sops_possible"]
    assert record["macs"] == 22 * 22 * 2  # taps of 8x8 pixels that are in the image
    for text in ("block_0/mlp/fc2_linear", "SOPs", "beats the ANN", "attention: "):
        assert text in out
    assert set(record["bars"]) == set(record["total_nj"]) and record["note"]


def test_an_attention_that_joins_steps_is_one_of_a_single_step_as_an_ann():
    model = models.build(
        "columnar",
        "1-16",
        num_classes=4,
        image_size=8,
        heads=2,
        timesteps=2,
        attention="statten",
    )
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    products = energy._once(model, variables, (8, 8, 3), None)
    assert any(o.path == "block_0/attention" for o in products)


@pytest.mark.slow
def test_of_a_silent_network_there_is_no_rate(tmp_path, capsys):
    c = config(eval__examples=8)
    save(tmp_path / "run", c, lambda parts, abstract: {})
    record = energy.run(c, tmp_path / "run")
    assert record["sops"] == 0 and record["break_even"] == {}
    assert "not one spike was seen" in capsys.readouterr().out


def test_without_a_run_there_is_nothing_to_count(tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        energy.run(config(), tmp_path)
