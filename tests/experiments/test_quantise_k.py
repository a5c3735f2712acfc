"""Rounding K after training changes K, what follows from it, and nothing else."""

import importlib.util
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.models import build

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "block_0/attention/k_bn"


@pytest.fixture(scope="module")
def script():
    path = ROOT / "experiments" / "quantise_k.py"
    spec = importlib.util.spec_from_file_location("quantise_k", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model_and_inputs():
    """A model whose running statistics are those of its batch, so that it fires."""
    how = dict(num_classes=4, image_size=None, in_channels=6, timesteps=2, heads=2)
    model = build("columnar", "1-16", **how, stem="tokens", readout="query")
    x = jax.random.normal(jax.random.key(0), (32, 12, 6))
    variables = model.init(jax.random.key(1), x, train=False)

    def update(stats, _):
        now = {"params": variables["params"], "batch_stats": stats}
        new = model.apply(now, x, train=True, mutable=["batch_stats"])[1]
        return new["batch_stats"], None

    stats = jax.jit(lambda s: jax.lax.scan(update, s, None, 60)[0])(
        variables["batch_stats"]
    )
    return model, {"params": variables["params"], "batch_stats": stats}, x


def spikes_of(model_and_inputs, interceptor):
    """{layer: its spikes}, the scores under "logits"."""
    model, variables, x = model_and_inputs
    with nn.intercept_methods(interceptor):
        logits, kept = model.apply(variables, x, mutable=["spikes"])
    attention = kept["spikes"]["block_0"].pop("attention")
    found = {k: v["out"][0] for k, v in attention.items()}
    found["mid_neuron"] = kept["spikes"]["block_0"]["mid_neuron"]["out"][0]
    found["stem_neuron"] = kept["spikes"]["stem_neuron"]["out"][0]
    return found | {"logits": logits}


def largest_key(script, model_and_inputs):
    """Of the unrounded model."""
    peak = []

    def look(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.module.name == "k_bn":
            peak.append(float(out.max()))
        return out

    spikes_of(model_and_inputs, look)
    return peak[0]


@pytest.mark.slow
def test_no_bits_change_nothing_and_24_bits_hardly(script, model_and_inputs):
    def plain(call, args, kwargs, context):
        return call(*args, **kwargs)

    want = spikes_of(model_and_inputs, plain)
    assert 0.02 < want["attention_neuron"].mean() < 0.98
    same = spikes_of(model_and_inputs, script.rounding(None, {}))
    peak = largest_key(script, model_and_inputs)
    fine = script.rounding(24, {NAME: peak / (2**24 - 1)})
    close = spikes_of(model_and_inputs, fine)
    for name, array in want.items():
        np.testing.assert_array_equal(same[name], array, err_msg=name)
        np.testing.assert_allclose(close[name], array, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_one_bit_changes_what_reads_k_alone(script, model_and_inputs):
    peak = largest_key(script, model_and_inputs)
    want = spikes_of(model_and_inputs, script.rounding(None, {}))
    got = spikes_of(model_and_inputs, script.rounding(1, {NAME: peak}))
    for name in ("stem_neuron", "q_neuron", "v_neuron"):
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    assert (got["attention_neuron"] != want["attention_neuron"]).any()


def test_the_step_is_that_of_least_squared_error(script):
    k = np.arange(4, dtype=np.float32)  # two bits: levels 0 to 3 steps
    chosen = dict(script.steps(k, bits=2))
    assert chosen["any"] == pytest.approx(1.0) and chosen["power of two"] == 1.0
    chosen = dict(script.steps(np.float32(0.3) * k, bits=2))
    assert chosen["any"] == pytest.approx(0.3) and chosen["power of two"] == 0.25


def test_the_unrounded_row_is_the_accuracy_of_the_runs(script):
    folder = ROOT / "experiments" / "results"
    value = json.loads((folder / "quantise_k.json").read_text())
    row = value["rows"][0]
    assert row["bits"] is None
    for seed, right in zip(script.SEEDS, row["accuracies"], strict=True):
        run = folder / "ablation" / f"{script.NAME.format(seed)}.json"
        assert json.loads(run.read_text())["test"]["accuracy"] == right
    assert jnp.isfinite(jnp.array(row["accuracies"])).all()
