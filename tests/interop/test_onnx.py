"""ONNX: what is refused, what is written out, and the same logits by onnxruntime.

The last needs jax2onnx and onnxruntime, the extra `onnx`, and is skipped without.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.ad_checkpoint import checkpoint_name

from a2os2a_jax import models
from a2os2a_jax.functional import neurons
from a2os2a_jax.functional.pooling import max_pool
from a2os2a_jax.interop import onnx

IMAGES = dict(image_size=8, in_channels=1)
TOKENS = dict(stem="tokens", image_size=None, in_channels=6)


def built(name="columnar", variant="1-16", **options):
    options = dict(num_classes=3, heads=2, timesteps=2) | IMAGES | options
    return models.build(name, variant, **options)


def drawn(model, rng):
    """Variables with which layers fire: wide kernels, BN that centres a little."""
    size = model.image_size
    frame = (size, size, 1) if size else (5, model.in_channels)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *frame)))
    flat = traverse_util.flatten_dict(shapes)
    made = {}
    for path, want in flat.items():
        if path[-1] == "kernel":
            fan = max(1, int(np.prod(want.shape[:-1])))
            value = rng.normal(0, 2 / fan**0.5, want.shape)
        elif path[-1] in ("scale", "var"):
            value = rng.uniform(0.75, 1.25, want.shape)
        else:
            value = rng.normal(0, 0.2, want.shape)
        made[path] = jnp.asarray(value, want.dtype)
    return traverse_util.unflatten_dict(made)


def folded(seed=0, head="spikes", **options):
    """(model, params, shape of a frame)."""
    model = built(**options)
    tokens = None if model.image_size else 5
    variables = drawn(model, np.random.default_rng(seed))
    made = models.fold(model, variables, head=head, tokens=tokens)
    return *made, (8, 8, 1) if model.image_size else (5, model.in_channels)


def names(jaxpr):
    return {equation.primitive.name for equation in jaxpr.eqns}


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "fold", "path", "words"),
    [
        (TOKENS, dict(tokens=5), "x.pb", "got suffix '.pb', expected .onnx"),
        (TOKENS, None, "x.onnx", "a Columnar that is not folded, expected what models"),
        (TOKENS | dict(dtype="bfloat16"), dict(tokens=5), "x.onnx", "in bfloat16"),
        (TOKENS | dict(readout="query"), {}, "x.onnx", r"expected models.fold\(..., t"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path, options, fold, path, words):
    model = built(**options)
    if fold is not None:
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 5, 6)))
        model, _ = models.fold(model, shapes, **fold)
    with pytest.raises(ValueError, match=words) as error:
        onnx.save(model, {}, tmp_path / path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def small():
    return folded(**TOKENS)


def test_a_file_that_is_there_stays(tmp_path, small):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="got a file that exists, expected none"):
        onnx.save(*small[:2], path)
    assert path.read_bytes() == b"mine"


def test_a_missing_converter_is_named_with_its_cure(tmp_path, small, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match="pip install jax2onnx"):
        onnx.save(*small[:2], tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


# ---- what is written out


def everything(x):
    """[4, 5, 5, 2]: calls, loops, a window, names and shifts."""
    x = max_pool(x)
    s = neurons.unroll(neurons.ternary_step, neurons.ternary_init, x)
    back = jax.lax.scan(lambda c, y: (c + y, c), x[0], x, reverse=True)[1]
    s = jax.checkpoint(lambda s: checkpoint_name(s * 2, "spikes/ternary"))(s)
    return s + back, (jnp.arange(6, dtype=jnp.int32) * 7) >> 2


def test_a_program_written_out_gives_the_same_to_the_last_bit():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 5, 2)), jnp.float32)
    program = onnx.written_out(everything, x)
    got, want = jax.core.eval_jaxpr(program.jaxpr, program.consts, x), everything(x)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("remat", [False, True])
def test_no_call_loop_or_window_is_left_for_any_batch(remat):
    model, params, frame = folded(remat=remat)
    (batch,) = jax.export.symbolic_shape("batch", constraints=["batch >= 1"])
    images = jax.ShapeDtypeStruct((batch, *frame), jnp.float32)
    run = functools.partial(model.apply, params)
    left = names(onnx.written_out(run, images).jaxpr)
    assert left & (set(onnx.CALLS) | set(onnx.SPECIAL)) == set()
    assert {"conv_general_dilated", "dot_general", "max", "select_n"} <= left


def test_a_window_that_reaches_further_than_its_padding_allows_is_refused():
    def pool(x):
        return jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (3,), (1,), ((3, 3),), window_dilation=(1,)
        )

    with pytest.raises(ValueError, match="got a dilated or wider padded window"):
        onnx.written_out(pool, jnp.zeros(8))


# ---- by onnxruntime


@pytest.fixture(scope="module")
def runtime():
    """The module, without its warnings of initialisers that are not used."""
    pytest.importorskip("jax2onnx", reason="needs jax2onnx: the extra `onnx`")
    module = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    module.set_default_logger_severity(3)
    return module


def both(runtime, path, model, params, x, **how):
    """(logits by jax, by onnxruntime, session, spikes)."""
    onnx.save(model, params, path, **how)
    per_step = how.get("per_step", False)
    run = jax.jit(
        lambda x: model.apply(params, x, per_step=per_step, mutable=["spikes"])
    )
    want, sown = run(x)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {onnx.INPUT: x})
    fires = [float((s != 0).mean()) for s in jax.tree.leaves(sown["spikes"])]
    assert min(fires) > 0.01 and max(fires) < 0.98, fires
    return np.asarray(want), got, session


DRIVEN = dict(name="spike_driven", neuron=dict(v_th=0.5))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the converter's own
@pytest.mark.parametrize(
    ("options", "head"),
    [
        (TOKENS, "spikes"),
        (TOKENS | dict(attention=dict(order="qk_v")), "bits"),
        (TOKENS | dict(attention="vssa"), "counts"),
        (TOKENS | DRIVEN, "spikes"),
    ],
)
def test_in_float64_onnxruntime_gives_the_same(x64, runtime, tmp_path, options, head):
    """Every spike too: one that flips moves the logits by far more."""
    model, params, frame = folded(head=head, dtype="float64", **options)
    x = np.random.default_rng(1).normal(size=(64, *frame))
    want, got, _ = both(runtime, tmp_path / "x.onnx", model, params, x)
    assert got.dtype == np.float64 and np.ptp(want, axis=0).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("sequence", [False, True])
def test_images_of_any_batch_in_float32(runtime, tmp_path, sequence):
    """Spikes near the threshold may flip, so most, not all, have to be equal."""
    model, params, frame = folded()
    steps = (2,) if sequence else ()
    x = np.random.default_rng(1).normal(size=(64, *steps, *frame)).astype(np.float32)
    how = dict(sequence=sequence, per_step=sequence)
    want, got, session = both(runtime, tmp_path / "x.onnx", model, params, x, **how)
    assert got.shape == want.shape == (64, *steps, 3)
    gap = np.abs(got - want).max(tuple(range(1, got.ndim)))
    assert np.mean(gap < 1e-4 * np.ptp(want)) > 0.9
    few = session.run(None, {onnx.INPUT: x[:3]})[0]
    np.testing.assert_allclose(few, got[:3], rtol=0, atol=1e-4 * np.ptp(want))
