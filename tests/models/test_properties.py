"""What must hold of any model, checked in float64, where no rounding flips a spike.

`case` (conftest.py) sets running statistics from a batch first, and every call of it
asserts that all layers fire.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax import models
from a2os2a_jax.modules import neuron

pytestmark = pytest.mark.usefixtures("x64")
ORDER = np.array([2, 0, 3, 1])
TOKENS = dict(stem="tokens", image_size=None, in_channels=6, readout="query")
# The second family. Its decayed input halves the drive, and the threshold follows.
DRIVEN = dict(variant="1-32", family="spike_driven", neuron=dict(v_th=0.5))


def same(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


def same_spikes(got, want, where=slice(None)):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name][where], err_msg=name)


def check_permutation(forward, images):
    """forward(images) -> (logits, {layer: spikes}, ...): samples know not of others."""
    logits, spikes, *_ = forward(images)
    moved, moved_spikes, *_ = forward(images[ORDER])
    assert np.ptp(logits, axis=0).max() > 1e-3, "all samples have the same logits"
    same(moved, logits[ORDER])
    same_spikes(moved_spikes, spikes, ORDER)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("options", [{}, DRIVEN], ids=["columnar", "spike_driven"])
def test_permuting_the_batch_permutes_the_logits(case, options, train):
    model = case(**options)
    check_permutation(lambda x: model(x, train=train), model.images)


def test_a_neuron_that_integrates_over_the_batch_is_caught(
    case, quick_jit, layers, monkeypatch
):
    """The defect of QKFormer's public code: the neuron after the attention product runs
    over T·B steps, and its membrane passes from one sample to the next."""
    sound = neuron.make

    def make(form, options, *, name=None, **how):
        inner = sound(form, options, name=name, **how)
        if name != "attention_neuron":
            return inner

        def over_the_batch(x):
            x = x.swapaxes(0, 1)
            folded = inner(x.reshape(1, -1, *x.shape[2:]))
            return folded.reshape(x.shape).swapaxes(0, 1)

        return over_the_batch

    model = case()
    monkeypatch.setattr(neuron, "make", make)
    run = quick_jit(lambda x: model.eager(model.variables, x))

    def forward(x):
        logits, sown = run(x)
        return np.asarray(logits), layers(sown)

    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_permutation(forward, model.images)


def test_a_sample_alone_has_the_logits_it_has_in_a_batch(case):
    model = case()
    logits, spikes, _ = model(model.images, per_step=True)
    alone, alone_spikes, _ = model(model.images[1:2], per_step=True)
    same(alone, logits[1:2])
    same_spikes(alone_spikes, spikes, slice(1, 2))


def test_a_frame_changes_nothing_before_it(case):
    model = case()
    logits, spikes, _ = model(model.images, per_step=True)
    for t in range(model.images.shape[1]):
        other = model.images.at[:, t].set(model.images[::-1, t])
        changed, changed_spikes, _ = model(other, per_step=True)
        same(changed[:, :t], logits[:, :t])
        assert np.abs(changed[:, t] - logits[:, t]).max() > 1e-4
        for name, s in spikes.items():
            np.testing.assert_array_equal(changed_spikes[name][:, :t], s[:, :t], name)
            assert (changed_spikes[name][:, t] != s[:, t]).any(), name


def test_the_last_frame_changes_the_logits(case):
    model = case()
    other = model.images.at[:, -1].set(model.images[::-1, -1])
    assert np.abs(model(other)[0] - model(model.images)[0]).max() > 1e-4


def test_nothing_leaks_between_calls(case):
    model = case()
    before = jax.tree.map(np.array, model.variables)
    first, spikes, _ = model(model.images)
    model(model.images[ORDER])
    model(model.images, train=True)
    again, again_spikes, _ = model(model.images)
    np.testing.assert_array_equal(again, first)
    same_spikes(again_spikes, spikes)
    chex.assert_trees_all_equal(model.variables, before)


def test_compiled_and_eager_are_equal(case, layers):
    model = case()
    logits, spikes, _ = model(model.images)
    eager, sown = model.eager(model.variables, model.images)
    same(eager, logits)
    same_spikes(layers(sown), spikes)


@pytest.mark.parametrize("options", [{}, TOKENS], ids=["images", "tokens"])
def test_a_static_image_is_the_sequence_that_repeats_it(case, options):
    """In training too: the running statistics count n = B·T·positions in both forms."""
    model = case("1-32" if options else "2-32", **options)
    one = model.images[:, 0]
    repeated = jnp.repeat(one[:, None], model.model.timesteps, axis=1)
    for train in (False, True):
        logits, spikes, stats = model(one, train=train)
        want, want_spikes, want_stats = model(repeated, train=train)
        same(logits, want)
        for name, s in want_spikes.items():
            np.testing.assert_array_equal(spikes[name], s, err_msg=name)
    jax.tree.map(same, stats, want_stats)
    moved = [
        abs(a - b).max()
        for a, b in zip(
            *map(jax.tree.leaves, (stats, (model.variables["batch_stats"]))),
            strict=True,
        )
    ]
    assert min(moved) > 1e-6


def test_running_variances_are_unbiased(case):
    """Of the first convolution, whose output can be had without the model."""
    model = case()
    _, _, stats = model(model.images, train=True, variables=model.initial)
    x = model.images.reshape(-1, *model.images.shape[2:])
    kernel = model.initial["params"]["stem"]["conv_0"]["kernel"]
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims)
    y = np.asarray(y).reshape(-1, y.shape[-1])
    got = model.batch_statistics(stats)["stem"]["bn_0"]
    same(got["mean"], y.mean(0))
    same(got["var"], y.var(0, ddof=1))
    assert (np.abs(y.var(0) / y.var(0, ddof=1) - 1) > 1e-4).all()


@pytest.mark.parametrize("kind", ["a2os2a", "vssa"])
def test_both_orders_of_attention_are_equal(case, kind):
    results = []
    for order in ("qk_v", "q_kv"):
        model = case(
            "1-32", attention=dict(kind=kind, order=order), tokens=24, **TOKENS
        )
        results.append(model(model.images))
    same(results[0][0], results[1][0])
    same_spikes(results[0][1], results[1][1])


def test_logits_are_the_mean_over_the_steps(case):
    model = case()
    steps, _, _ = model(model.images, per_step=True)
    logits, _, _ = model(model.images)
    assert steps.shape == (4, 3, 10) and logits.shape == (4, 10)
    same(logits, steps.mean(1))
    assert np.ptp(steps, axis=1).max() > 1e-3


def test_one_step_is_the_first_of_many(case, quick_jit, layers):
    model = case()
    first, spikes, _ = model(model.images, per_step=True)
    single = models.build("columnar", "2-32", **model.options | {"timesteps": 1})
    run = quick_jit(lambda x: single.apply(model.variables, x, mutable=["spikes"]))
    logits, sown = run(model.images[:, 0])
    same(logits, first[:, 0])
    for name, s in layers(sown).items():
        np.testing.assert_array_equal(s, spikes[name][:, :1], err_msg=name)


def test_the_membrane_readout_is_a_neuron_on_the_mean_membrane(case, quick_jit):
    """Of the last block, which has no neuron of its own at its end."""
    model = case(**DRIVEN)
    logits, spikes, _ = model(model.images, per_step=True)
    assert not [name for name in spikes if "out_neuron" in name]
    head, s = model.variables["params"]["head"], spikes["head_neuron"]
    assert s.shape == (4, 3, 32) and set(np.unique(s)) == {0, 1}
    same(logits, s @ np.asarray(head["kernel"]) + np.asarray(head["bias"]))
    kept = quick_jit(
        lambda x: model.model.apply(
            model.variables,
            x,
            mutable=["intermediates", "features"],
            capture_intermediates=lambda module, _: module.name == "block_0",
        )[1]
    )(model.images)
    nothing, u = kept["intermediates"]["block_0"]["__call__"][0]
    assert nothing is None and u.shape == (4, 3, 4, 32)
    h = np.asarray(u.mean(2))
    v = np.zeros_like(h[:, 0])
    for t in range(3):  # tau 2, threshold 1/2, input decayed, hard reset
        v = (v + h[:, t]) / 2
        np.testing.assert_array_equal(v >= 0.5, s[:, t])
        v = np.where(v >= 0.5, 0, v)
    same(kept["features"]["out"][0], s.mean(1))


@pytest.mark.parametrize("options", [{}, TOKENS], ids=["mean", "query"])
def test_the_head_reads_the_spikes_it_says(case, options):
    """The mean over tokens, or the last token, which is the query."""
    model = case("1-32" if options else "2-32", **options)
    logits, spikes, _ = model(model.images, per_step=True)
    s = spikes[f"block_{model.model.depth - 1}/out_neuron"]
    read = s[:, :, -1] if options else s.mean(2)
    head = model.variables["params"]["head"]
    same(logits, read @ np.asarray(head["kernel"]) + np.asarray(head["bias"]))


# --- one frame at a time --------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, dict(variant="1-32") | TOKENS, DRIVEN],
    ids=["images", "tokens", "spike_driven"],
)
def test_streaming_is_the_whole_sequence(case, options):
    model = case(**options)
    want, _, _ = model(model.images, per_step=True)
    init, step = model.stream
    batch, steps = model.images.shape[:2]
    state = init(batch, model.images.shape[2] if "stem" in options else None)
    got = []
    for t in range(steps):
        state, logits = step(state, model.images[:, t])
        got.append(logits)
    same(np.stack(got, 1), want)


def test_two_streams_do_not_mix(case):
    model = case()
    want, _, _ = model(model.images, per_step=True)
    init, step = model.stream
    states = {0: init(1), 3: init(1)}
    got = {0: [], 3: []}
    for t in range(model.images.shape[1]):
        for i in states:
            states[i], logits = step(states[i], model.images[i : i + 1, t])
            got[i].append(logits[0])
    for i in states:
        same(np.stack(got[i]), want[i])
    assert np.abs(want[0] - want[3]).max() > 1e-3


def test_a_stream_with_the_stem_tokens_needs_their_number(case):
    model = case("1-32", **TOKENS)
    with pytest.raises(ValueError, match="batch_size, tokens"):
        model.model.stream(model.variables)[0](2)


def test_a_stream_starts_from_the_reset_potential(case):
    model = case("1-32", neuron=dict(v_reset=-0.25), **TOKENS)
    want, _, _ = model(model.images, per_step=True)
    init, step = model.stream
    state = init(4, model.images.shape[2])
    assert {float(x) for v in jax.tree.leaves(state) for x in v.ravel()} == {-0.25}
    same(step(state, model.images[:, 0])[1], want[:, 0])


# --- memory ---------------------------------------------------------------------------


@pytest.mark.slow
def test_recomputing_blocks_changes_neither_loss_nor_gradient(case, quick_jit):
    results = []
    for remat in (False, True):
        model = case(remat=remat)

        def loss(params, model=model):
            variables = model.initial | {"params": params}
            logits, _ = model.eager(variables, model.images, train=True)
            return -jax.nn.log_softmax(logits)[:, 1].mean()

        text = str(jax.make_jaxpr(jax.grad(loss))(model.initial["params"]))
        assert ("policy=" in text) == remat
        results.append(quick_jit(jax.value_and_grad(loss))(model.initial["params"]))
    (loss, grads), (again, remat_grads) = results
    same(again, loss)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    for a, b in zip(*map(jax.tree.leaves, (remat_grads, grads)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * largest)
