"""One batch reaches every parameter tensor, whatever the options; in float64.

Variables are those of a fresh model, in training mode, with cross-entropy; excepted are
biases in front of a BatchNorm, whose gradient is zero in exact arithmetic.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from a2os2a_jax.functional import attention

pytestmark = pytest.mark.usefixtures("x64")
BEFORE_A_NORM = ("proj_linear/bias", "fc1_linear/bias", "fc2_linear/bias")
BINARY_K, BINARY_V = dict(k="binary"), dict(v="binary")
SIZE_16, HIGH = dict(image_size=16), dict(v_th=1.25)  # HIGH: else the stem fires > 70 %
CASES = {  # variant (1-64 if not given), pool and other options of `build`
    "a2os2a": dict(variant="2-64", pool="0011"),
    "shortcut attention": dict(variant="2-64", pool="0011", shortcut="attention"),
    "vssa": dict(attention="vssa", pool="0001", neuron=HIGH),
    "none": dict(attention="none", pool="1111", **SIZE_16),
    "k binary": dict(attention=BINARY_K, pool="0100"),
    "v binary": dict(attention=BINARY_V, pool="0101"),
    "k and v binary, no scale": dict(
        attention=BINARY_K | BINARY_V | dict(v_th=2.0), pool="1000"
    ),
    "k and v real": dict(
        attention=dict(k="relu", v="ternary", order="q_kv"), pool="0010"
    ),
    "a scale of one's own": dict(attention=dict(scale=0.25, v_th=0.75), pool="1110"),
    "decayed input": dict(neuron=dict(decay_input=True), pool="1000", timesteps=4),
    "guo": dict(
        neuron=dict(rule="guo"),
        attention=dict(k_gain=1 / 64),
        pool="1000",
        image_size=16,
    ),
    "learnt tau": dict(neuron=dict(learn_tau=True) | HIGH, pool="0111", **SIZE_16),
    "soft reset": dict(neuron=dict(soft_reset=True), pool="1010"),
    "another rest": dict(neuron=dict(v_reset=-0.5), pool="0110"),
    "reset in the graph": dict(neuron=dict(detach_reset=False), pool="0000"),
    "sigmoid": dict(neuron=dict(surrogate="sigmoid"), pool="1001"),
    "rectangle": dict(
        neuron=dict(surrogate="rectangle") | HIGH, pool="1011", **SIZE_16
    ),
    "triangle": dict(neuron=dict(surrogate="triangle"), pool="1101", **SIZE_16),
    "straight through": dict(
        neuron=dict(surrogate="straight_through(-1,1)"), pool="1100"
    ),
    "tokens": dict(
        stem="tokens",
        image_size=None,
        in_channels=6,
        readout="query",
        tokens=12,
        attention=dict(order="q_kv"),
    ),
    "images with a query": dict(readout="query", pool="0011"),
    "recomputed": dict(remat=True, pool="1100"),
    "frozen_qk": dict(attention="frozen_qk", pool="0010"),
    "frozen_v": dict(attention="frozen_v", pool="1001"),
    "uniform": dict(attention="uniform", pool="0100"),
    "v_only": dict(attention="v_only", pool="0110"),
    "scaled by tokens": dict(attention=dict(normalise="sqrt"), pool="0101"),
    "shiftmax": dict(attention=dict(normalise="shiftmax", v_th=0.25), pool="0101"),
    "no projection": dict(attention=dict(projection=False), pool="1110"),
    "loss of every step": dict(pool="0011", per_step=True),
}


def cross_entropy(logits, labels):
    """Mean over batch, and over steps where there are any."""
    scores = jax.nn.log_softmax(logits).reshape(len(labels), -1, logits.shape[-1])
    return -scores[jnp.arange(len(labels)), :, labels].mean()


@pytest.fixture(scope="module")
def gradients(case, quick_jit, layers):
    """gradients(name) -> (loss, {parameter: gradient}); every layer fires."""

    def compute(name):
        options = {"timesteps": 2} | CASES[name]
        variant, per_step = (
            options.pop("variant", "1-64"),
            options.pop("per_step", False),
        )
        model = case(variant, batch=8, jitter=0.0, calibrate=False, **options)
        labels = jnp.arange(8) % 10

        def loss(params):
            variables = model.initial | {"params": params}
            logits, sown = model.eager(
                variables, model.images, train=True, per_step=per_step
            )
            return cross_entropy(logits, labels), {"spikes": sown["spikes"]}

        run = quick_jit(jax.value_and_grad(loss, has_aux=True))
        (value, sown), grads = run(model.initial["params"])
        layers(sown)
        return float(value), traverse_util.flatten_dict(jax.device_get(grads), sep="/")

    return compute


@pytest.fixture(scope="module")
def computed(gradients):
    """The same, once a name."""
    return functools.cache(gradients)


def check_every_parameter_learns(grads, frozen=()):
    """Rounding leaves 1e-17 where nothing arrives; the rest is far above."""
    still = {name for name in grads if any(name.endswith(end) for end in frozen)}
    assert all((grads[name] == 0).all() for name in still)
    grads = {name: g for name, g in grads.items() if name not in still}
    sizes = {name: np.abs(g).max() for name, g in grads.items()}
    assert all(np.isfinite(g).all() for g in grads.values())
    largest = max(sizes.values())
    excepted = {name for name in sizes if name.endswith(BEFORE_A_NORM)}
    unmoved = [n for n in sizes if n not in excepted and sizes[n] < 1e-6 * largest]
    assert not unmoved, f"no gradient in {unmoved}"
    moved = [name for name in excepted if sizes[name] > 1e-12 * largest]
    assert not moved, f"gradient in front of a BatchNorm in {moved}"


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_gets_a_gradient(computed, name):
    _, grads = computed(name)
    frozen = {"frozen_qk": ("q_linear/kernel", "k_linear/kernel")}
    frozen |= {"frozen_v": ("v_linear/kernel",)}
    check_every_parameter_learns(grads, frozen.get(name, ()))
    present = {ending for ending in BEFORE_A_NORM for n in grads if n.endswith(ending)}
    without = name in ("none", "no projection")
    assert present == set(BEFORE_A_NORM[1:] if without else BEFORE_A_NORM)
    assert any(n.endswith("/w") for n in grads) == (name == "learnt tau")


def test_every_pool_pattern_is_among_the_cases():
    patterns = {options["pool"] for options in CASES.values() if "pool" in options}
    assert patterns == {f"{i:04b}" for i in range(16)}


@pytest.mark.parametrize("which", ["v", "k", "q"])
def test_a_frozen_projection_is_caught(gradients, monkeypatch, which):
    """A stop_gradient on one factor of the product; all else as it was."""
    sound = attention.a2os2a

    def frozen(q, k, v, order):
        factors = dict(q=q, k=k, v=v)
        factors[which] = jax.lax.stop_gradient(factors[which])
        return sound(**factors, order=order)

    monkeypatch.setattr(attention, "a2os2a", frozen)
    _, grads = gradients("tokens")
    with pytest.raises(AssertionError, match=f"no gradient in .*{which}_linear/kernel"):
        check_every_parameter_learns(grads)


def test_the_shortcuts_differ(computed):
    (full, grads), (attention_only, others) = map(
        computed, ("a2os2a", "shortcut attention")
    )
    assert grads.keys() == others.keys()
    assert abs(full - attention_only) > 1e-4
    stem = "stem/conv_0/kernel"
    assert np.abs(grads[stem] - others[stem]).max() > 1e-2 * np.abs(grads[stem]).max()


def test_the_loss_at_the_start_is_that_of_guessing(computed):
    for name in CASES:
        assert abs(computed(name)[0] - np.log(10)) < 0.1, name
