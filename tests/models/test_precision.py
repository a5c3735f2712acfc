"""bfloat16 computes in bfloat16 and keeps in float32; float64 does all in float64."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.norm import BatchNorm


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


SMALL = dict(variant="1-32", timesteps=2, batch=8)


@pytest.fixture(scope="module")
def low(case):
    return case(dtype="bfloat16", **SMALL)


@pytest.fixture(scope="module")
def single(case):
    return case(dtype="float32", **SMALL)


def norms(case, quick_jit):
    """The outputs of all BatchNorms, which go onto membranes, and the spikes."""

    def run(images):
        _, kept = case.model.apply(
            case.variables,
            images,
            mutable=["intermediates", "spikes"],
            capture_intermediates=lambda module, _: isinstance(module, BatchNorm),
        )
        return kept

    return quick_jit(run)(case.images)


def test_bfloat16_keeps_parameters_statistics_membranes_and_logits_in_float32(low):
    assert low.images.dtype == jnp.bfloat16
    assert dtypes(low.initial) == {"float32"}
    logits, spikes, stats = low(low.images, train=True, variables=low.initial)
    assert dtypes(stats) == {"float32"} and logits.dtype == np.float32
    assert dtypes(spikes) == {"bfloat16"}
    init, step = low.model.stream(low.variables)
    state = jax.eval_shape(lambda: init(2))
    assert dtypes(state) == {"float32"}
    state, logits = jax.eval_shape(step, state, low.images[:2, 0])
    assert dtypes(state) == {"float32"} and logits.dtype == jnp.float32


def test_bfloat16_is_close_to_float32_while_inputs_are_equal(low, single, quick_jit):
    np.testing.assert_array_equal(low.images.astype(jnp.float32), single.images)
    chex.assert_trees_all_equal(low.initial, single.initial)
    got, want = (norms(model, quick_jit) for model in (low, single))
    (a,), (b,) = (x["intermediates"]["stem"]["bn_0"]["__call__"] for x in (got, want))
    assert dtypes(got["intermediates"]) == {"float32"}
    assert 0 < np.abs(a - b).max() < 2**-5 * np.abs(b).max()
    (a,), (b,) = (x["spikes"]["stem"]["neuron_0"]["out"] for x in (got, want))
    flipped = np.mean(np.asarray(a, np.float32) != np.asarray(b))
    assert flipped < 0.02 < np.mean(np.asarray(b)) < 0.7


LAYERS = (nn.Conv, nn.Dense, BatchNorm, neuron.Neuron)


def layer_by_layer(low, single, quick_jit):
    """{layer: (in, in, out, out)}, float32 first, each fed what the float32 one got.

    The inputs are what lies between two layers made of the float32 outputs: the
    attention product, the ReLU, pooling, the shortcuts.
    """

    def run(images):
        inputs, wanted, got = {}, {}, {}

        def record(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if args and isinstance(context.module, LAYERS):
                name = "/".join(context.module.path)
                inputs[name], wanted[name] = args[0], out
            return out

        def replay(call, args, kwargs, context):
            if not (args and isinstance(context.module, LAYERS)):
                return call(*args, **kwargs)
            name = "/".join(context.module.path)
            x = inputs[name].astype(args[0].dtype)
            out = call(x, *args[1:], **kwargs)
            got[name] = (inputs[name], args[0], wanted[name], out)
            return wanted[name].astype(out.dtype)

        def forward(case):
            case.model.apply(single.variables, images, mutable=["spikes"])

        with nn.intercept_methods(record):
            forward(single)
        with nn.intercept_methods(replay):
            forward(low)
        return got

    return jax.device_get(quick_jit(run)(single.images))


def test_bfloat16_layer_by_layer(low, single, quick_jit):
    """Weights and inputs keep 8 bits, sums 24: an error of a few 2^-9 of the largest
    value; a neuron errs only where its membrane comes that close to the threshold."""
    compared = layer_by_layer(low, single, quick_jit)
    assert {"stem/conv_0", "block_0/attention/v_neuron", "head"} <= compared.keys()
    assert len(compared) > 25
    for name, arrays in compared.items():
        x, low_x, want, got = (np.asarray(a, np.float32) for a in arrays)
        assert np.abs(low_x - x).max() <= 2**-7 * np.abs(x).max(), name
        if "neuron" in name:
            assert 0.02 < np.mean(want != 0) < 0.7, name
            assert np.mean(got != want) < 0.02, name
        else:
            assert np.abs(got - want).max() <= 2**-7 * np.abs(want).max(), name


def test_bfloat16_end_to_end_is_no_other_model(low, single):
    """One flipped spike flips others, so there is no equality to ask for: spikes differ
    less than half as often as those of one image do from those of another."""
    _, got, _ = low(low.images, variables=single.variables)
    _, want, _ = single(single.images)
    for name, s in want.items():
        flipped = np.mean(np.asarray(got[name], np.float32) != s)
        assert flipped < np.mean(np.roll(s, 1, axis=0) != s) / 2, name


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gradients_are_float32_and_finite(case, quick_jit, dtype):
    model = case(dtype=dtype, **SMALL)

    def loss(params):
        variables = model.initial | {"params": params}
        logits, _ = model.eager(variables, model.images, train=True)
        return -jax.nn.log_softmax(logits)[:, 1].mean()

    grads = quick_jit(jax.grad(loss))(model.initial["params"])
    assert dtypes(grads) == {"float32"}
    for g in jax.tree.leaves(grads):
        assert np.isfinite(g).all()
    largest = {
        k: max(np.abs(g).max() for g in jax.tree.leaves(v)) for k, v in grads.items()
    }
    assert min(largest.values()) > 1e-4, largest


def test_float64_is_float64_throughout(x64, case):
    model = case("1-32", timesteps=2, neuron=dict(learn_tau=True), calibrate=False)
    assert dtypes(model.initial) == {"float64"}
    everything = ["spikes", "batch_stats", "potentials", "membrane", "intermediates"]
    logits, kept = jax.eval_shape(
        lambda v: model.model.apply(
            v, model.images, True, mutable=everything, capture_intermediates=True
        ),
        model.initial,
    )
    assert set(kept) == set(everything)
    assert dtypes((logits, kept)) == {"float64"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_other_dtypes_stay_what_they_are_where_float64_is_enabled(x64, case, dtype):
    options = dict(timesteps=2, neuron=dict(learn_tau=True), calibrate=False)
    model = case("1-32", dtype=dtype, **options)
    real = jax.eval_shape(model.model.init, jax.random.key(0), model.images)
    assert dtypes(real) == {"float32"}
    logits, kept = jax.eval_shape(
        lambda v: model.model.apply(
            v, model.images, True, mutable=["spikes", "batch_stats", "membrane"]
        ),
        real,
    )
    assert dtypes(kept["spikes"]) == {dtype}
    assert dtypes((logits, kept["batch_stats"], kept["membrane"])) == {"float32"}
