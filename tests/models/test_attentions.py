"""Every attention in a block of either residual: trains, folds, streams; in float64.

One block of width 16 on images of 4 x 4. Every kind is always done with one of the
residuals, but for ALREADY; everything with `slow`. What is specific to a kind stands in
tests/modules/test_attention.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from a2os2a_jax import models
from a2os2a_jax.modules.attention import KINDS, options_of

pytestmark = pytest.mark.usefixtures("x64")
# Options with which the attention's neuron fires, and not always, on so few tokens
OWN = {
    "vssa": dict(v_th=0.25),
    "ssa": dict(v_th=0.25),
    "sdsa3": dict(v_th=0.25),
    "qk_token": dict(v_th=2.0),
    "qk_channel": dict(v_th=5.0),
    "xnor": dict(v_th=2.0),
    "integer": dict(scale=8.0),
    "bsa": dict(v_th=0.125),
    "v_only": dict(v_th=1.0),
}
# In models of test_gradients.py and test_families.py, by default, so `slow` here
ALREADY = ("a2os2a", "vssa", "ssa", "sdsa", "qk_token")
ALREADY += ("frozen_qk", "frozen_v", "uniform", "v_only", "none")
ON_COUNTS = ("sasa",)  # so that the other residual is always done as well
QUICK = [
    (kind, "spikes" if kind in ON_COUNTS else "membrane")
    for kind in KINDS
    if kind not in ALREADY
]
RESIDUALS = ("membrane", "spikes")
CASES = [
    pytest.param(
        (kind, residual),
        id=f"{kind} {residual}",
        marks=[] if (kind, residual) in QUICK else pytest.mark.slow,
    )
    for residual in RESIDUALS
    for kind in KINDS
]
# In exact arithmetic nothing arrives in front of a BN: at a bias, and at the last BN of
# a re-parameterised convolution, behind which the projection has one of its own
STILL = ("_linear/bias", "_rep/in_bn/bias", "_rep/out_bn/bias", "_rep/out_bn/scale")
FROZEN = {"frozen_qk": ("q_linear", "k_linear"), "frozen_v": ("v_linear",)}


class Trained:
    """A model after one training step's statistics, and what it gives.

    loss, grads: of that step. per_step, spikes: in evaluation, of the same images.
    """

    def __init__(self, case, quick_jit, layers, kind, residual):
        self.kind = kind
        options = dict(kind=kind) | OWN.get(kind, {})
        how = dict(image_size=4, pool="0000", timesteps=2, neuron=dict(v_th=1.1))
        how |= dict(attention=options, residual=residual, calibrate=False)
        self.case = made = case("1-16", **how)
        self.model, self.images = made.model, made.images
        self.layers, self.jit = layers, quick_jit

        def run(initial, images):
            def loss(params):
                variables = initial | {"params": params}
                logits, kept = made.eager(variables, images, train=True)
                return -jax.nn.log_softmax(logits)[:, 1].mean(), kept["batch_stats"]

            value, grads = jax.value_and_grad(loss, has_aux=True)(initial["params"])
            value, stats = value
            variables = initial | {"batch_stats": made.batch_statistics(stats)}
            out = made.eager(variables, images, per_step=True)
            return value, grads, variables, out

        out = quick_jit(run)(made.initial, made.images)
        self.loss, grads, self.variables, (self.per_step, sown) = out
        self.grads = traverse_util.flatten_dict(jax.device_get(grads), sep="/")
        self.spikes = layers(sown)

    def apply(self, model, variables, **how):
        def run(variables, x):
            return model.apply(variables, x, **how)

        return self.jit(run)(variables, self.images)


@pytest.fixture(scope="module")
def make(case, quick_jit, layers):
    """(kind, residual) -> Trained; each is made once."""
    with jax.enable_x64(True):
        yield functools.cache(
            lambda kind, residual: Trained(case, quick_jit, layers, kind, residual)
        )


@pytest.fixture(params=CASES)
def trained(request, make):
    return make(*request.param)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


def test_every_parameter_learns_that_can(trained):
    assert np.isfinite(trained.loss)
    sizes = {name: np.abs(g).max() for name, g in trained.grads.items()}
    assert all(np.isfinite(size) for size in sizes.values())
    frozen = [f"attention/{x}/kernel" for x in FROZEN.get(trained.kind, ())]
    frozen = {name for name in sizes if name.endswith(tuple(frozen))}
    assert len(frozen) == len(FROZEN.get(trained.kind, ()))
    assert all(sizes[name] == 0 for name in frozen)
    still = {name for name in sizes if name.endswith(STILL)}
    largest = max(sizes.values())
    unmoved = [
        n for n in sizes if n not in still | frozen and sizes[n] < 1e-6 * largest
    ]
    assert not unmoved, f"no gradient in {unmoved}"
    # of the scale of a BN in front of a BN a little is left, by the eps of both
    moved = [n for n in still if sizes[n] > (1e-4 if "scale" in n else 1e-12) * largest]
    assert not moved, f"gradient in front of a BatchNorm in {moved}"


def test_folded_it_gives_the_same(trained):
    want = trained.per_step.mean(1)
    assert np.ptp(want, axis=0).max() > 1e-3
    head = "spikes" if trained.model.residual == "membrane" else "bits"
    model, params = models.fold(trained.model, trained.variables, head=head)
    assert set(params) == {"params"}
    logits, sown = trained.apply(model, params, mutable=["spikes"])
    close(logits, want)
    spikes = trained.layers(sown)
    assert spikes.keys() == trained.spikes.keys()
    for name, s in trained.spikes.items():
        np.testing.assert_array_equal(spikes[name], s, err_msg=name)


STREAMED = [
    pytest.param(
        (kind, "membrane"),
        id=kind,
        marks=[] if kind == "dssa" else pytest.mark.slow,
    )
    for kind in KINDS
    if kind != "statten"
]


@pytest.mark.parametrize("trained", STREAMED, indirect=True)
def test_a_frame_at_a_time_is_the_sequence(trained):
    init, step = trained.model.stream(trained.variables)

    @trained.jit
    def run(images):
        state, first = step(init(4), images[:, 0])
        return jnp.stack([first, step(state, images[:, 1])[1]], 1)

    close(run(trained.images), trained.per_step)


def test_statten_has_no_stream_unless_its_chunk_is_one_step(make):
    trained = make("statten", "membrane")
    want = "^stream: got attention 'statten', which joins 2 steps, expected .* frame$"
    with pytest.raises(ValueError, match=want):
        trained.model.stream(trained.variables)
    alone = dict(trained.model.attention) | dict(chunk=1)
    trained.model.clone(attention=alone).stream(trained.variables)


@pytest.mark.slow
def test_statten_joins_the_steps_of_its_chunk_and_no_others(make):
    """A second frame changes what the first one gave; with chunk 1 it does not."""
    trained = make("statten", "membrane")
    other = trained.images.at[:, 1].set(trained.images[::-1, 1])
    alone = dict(trained.model.attention) | dict(chunk=1)
    models_of = (trained.model, trained.model.clone(attention=alone))

    @trained.jit
    def run(variables, *inputs):
        return [
            [m.apply(variables, x, per_step=True)[:, 0] for x in inputs]
            for m in models_of
        ]

    joined, single = run(trained.variables, trained.images, other)
    close(joined[0], trained.per_step[:, 0])
    assert np.abs(joined[0] - joined[1]).max() > 1e-4
    np.testing.assert_array_equal(single[0], single[1])


ORDERED = [
    pytest.param((kind, "membrane"), id=kind, marks=pytest.mark.slow)
    for kind in KINDS
    if "order" in options_of(dict(kind=kind))
    and kind != "bsa"  # whose shiftmax has one
]


@pytest.mark.parametrize("trained", ORDERED, indirect=True)
def test_both_orders_are_equal(trained):
    for order in ("qk_v", "q_kv"):
        attention = dict(trained.model.attention) | dict(order=order)
        model = trained.model.clone(attention=attention)
        close(trained.apply(model, trained.variables, per_step=True), trained.per_step)
