"""What must hold of the peers of the paper's model, as test_properties.py has it.

Tiny, in float64, with running statistics of the batch; every layer fires. What is true
of SpikingResformer stands in test_spikingresformer.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from a2os2a_jax import models
from a2os2a_jax.functional.pooling import max_pool
from a2os2a_jax.models.families import FAMILIES
from a2os2a_jax.models.qkformer import Embed
from a2os2a_jax.modules import neuron

pytestmark = pytest.mark.usefixtures("x64")
ORDER = np.array([2, 0, 3, 1])
# Their input decays by half, and attention has few tokens to add: lower thresholds
SSA = dict(kind="ssa", v_th=0.0625)
CASES = {
    "spikformer": dict(variant="1-16", pool="0001", neuron=dict(v_th=0.5)),
    "spikingformer": dict(variant="1-16", pool="0001", neuron=dict(v_th=0.5)),
    "qkformer": dict(variant="3-32", neuron=dict(v_th=0.7)),
}


@pytest.fixture(params=CASES)
def family(request, case):
    how = dict(family=request.param, timesteps=2, attention=SSA)
    return case(**how, **CASES[request.param])


def same(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


def same_spikes(got, want):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def moved(spikes, where):
    return {name: s[where] for name, s in spikes.items()}


def test_every_family_has_its_tests():
    elsewhere = {"columnar", "spike_driven", "spikingresformer"}
    assert CASES.keys() | elsewhere == FAMILIES.keys()


@pytest.mark.parametrize("train", [False, True])
def test_permuting_the_batch_permutes_the_logits(family, train):
    logits, spikes, _ = family(family.images, train=train)
    got, others, _ = family(family.images[ORDER], train=train)
    assert np.ptp(logits, axis=0).max() > 1e-3
    same(got, logits[ORDER])
    same_spikes(others, moved(spikes, ORDER))


@pytest.mark.parametrize("family", ["qkformer"], indirect=True)
def test_an_example_alone_is_the_same(family):
    logits, spikes, _ = family(family.images)
    alone, own, _ = family(family.images[1:2])
    same(alone, logits[1:2])
    same_spikes(own, moved(spikes, slice(1, 2)))


def test_a_static_image_is_the_sequence_that_repeats_it(family):
    one = family.images[:, 0]
    frames = jnp.repeat(one[:, None], family.model.timesteps, axis=1)
    for train in (False, True):
        logits, spikes, stats = family(one, train=train)
        want, others, want_stats = family(frames, train=train)
        same(logits, want)
        same_spikes(spikes, others)
    jax.tree.map(same, stats, want_stats)


def test_a_frame_at_a_time_is_the_sequence_and_logits_are_the_mean(family):
    want, _, _ = family(family.images, per_step=True)
    assert want.shape == (4, 2, 10) and np.ptp(want, axis=1).max() > 1e-3
    same(family(family.images)[0], want.mean(1))
    init, step = family.stream
    state, got = init(4, None), []
    for t in range(2):
        state, logits = step(state, family.images[:, t])
        got.append(logits)
    same(np.stack(got, 1), want)


@pytest.mark.parametrize(
    "family, block",
    [("spikformer", "block_0"), ("qkformer", "stage_3/block_0")],
    indirect=["family"],
)
def test_counts_are_sums_of_spikes_up_to_what_the_model_says(family, block):
    """What the head reads, put together from the spikes of all layers that add up."""
    _, spikes, _ = family(family.images)
    parts = [spikes[f"{block}/{x}_neuron"] for x in ("mid", "out")]
    if block == "block_0":
        pooled = np.asarray(max_pool(spikes["stem/neuron_3"]))
        parts += [pooled, spikes["stem/rpe_neuron"]]
    else:
        parts += [spikes[f"stage_3/embed/{x}"] for x in ("neuron_1", "res_neuron")]
    counts = sum(np.reshape(s, (4, 2, -1, family.model.dim)) for s in parts)
    assert family.model.most == len(parts) and counts.max() > 1
    head = family.variables["params"]["head"]
    want = counts.mean(2) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    same(family(family.images, per_step=True)[0], want)


# --- QKFormer's neuron that runs over the batch ---------------------------------------


@pytest.fixture
def over_batch(case):
    how = dict(family="qkformer", timesteps=2, attention=SSA, neuron_over_batch=True)
    return case(**how, **CASES["qkformer"])


def test_over_the_batch_examples_are_not_alone(over_batch):
    """Its place in the batch changes an example; alone, it is another one again."""
    assert over_batch.model.over_batch
    logits, spikes, _ = over_batch(over_batch.images)
    got, others, _ = over_batch(over_batch.images[ORDER])
    assert np.abs(got - logits[ORDER]).max() > 1e-3
    here = "stage_3/block_0/mid_neuron"
    assert spikes[here].shape[:2] == (1, 8)  # time first, then examples
    order = np.concatenate([ORDER, ORDER + 4])
    assert (others[here][0] != spikes[here][0, order]).any()
    before = [n for n in spikes if n.startswith(("stage_1/", "stage_2/"))]
    assert len(before) > 10
    for name in before:
        np.testing.assert_array_equal(others[name], spikes[name][ORDER], err_msg=name)


def test_over_the_batch_the_first_example_starts_from_rest(over_batch, case):
    """Steps in a row, time first: so the first step of the first one is as it was."""
    how = dict(family="qkformer", timesteps=2, attention=SSA)
    right = case(**how, **CASES["qkformer"])
    here = "stage_3/block_0/mid_neuron"
    _, want, _ = right(right.images)
    _, sown = over_batch.forward(right.variables, right.images)
    (got,) = sown["spikes"]["stage_3"]["block_0"]["mid_neuron"]["out"]
    got = got.reshape(2, 4, 4, 32).swapaxes(0, 1)
    np.testing.assert_array_equal(got[0, 0], want[here][0, 0])
    assert (got != want[here]).any()


def test_over_the_batch_there_is_no_stream(over_batch):
    with pytest.raises(ValueError, match="^stream: got neuron_over_batch.* False$"):
        over_batch.model.stream(over_batch.variables)


# --- folded ---------------------------------------------------------------------------


def test_folded_it_gives_the_same_and_its_head_may_read_digits(family, quick_jit):
    want, spikes, _ = family(family.images)
    orders = ("spikes", "bits")
    if family.model.readout == "potential":
        for head in ("spikes", "bits"):
            words = rf"^fold: head is '{head}', expected one of \('counts',\)$"
            with pytest.raises(ValueError, match=words):
                models.fold(family.model, family.variables, head=head)
        orders = ("counts",)
    folded = {o: models.fold(family.model, family.variables, head=o) for o in orders}
    default, _ = models.fold(family.model, family.variables)
    assert default == folded[orders[0]][0]

    @quick_jit
    def run(params, x):
        return {
            o: model.apply(params[o], x, mutable=["spikes"])
            for o, (model, _) in folded.items()
        }

    params = {o: variables for o, (_, variables) in folded.items()}
    for logits, sown in run(params, family.images).values():
        np.testing.assert_allclose(logits, want, rtol=0, atol=1e-10)
        flat = traverse_util.flatten_dict(sown["spikes"], sep="/")
        got = {name.removesuffix("/out"): s for name, (s,) in flat.items()}
        same_spikes(got, spikes)


CIFAR = {name: "4-384" for name in CASES} | {"spikingresformer": "cifar"}
CIFAR |= {"columnar": "2-512", "spike_driven": "2-512"}


@pytest.mark.slow  # test_certified.py folds them as well
@pytest.mark.parametrize("name", FAMILIES)
def test_a_published_size_folds_without_numbers(name):
    size = FAMILIES[name].sizes[CIFAR[name]]
    how = dict(num_classes=size.classes, image_size=32)
    model = models.build(name, CIFAR[name], **how)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    made = jax.eval_shape(model.init, jax.random.key(0), images)
    folded, params = models.fold(model, made)
    want = jax.eval_shape(folded.init, jax.random.key(0), images)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), want
    )
    before = traverse_util.flatten_dict(made["params"], sep="/")
    after = traverse_util.flatten_dict(params["params"], sep="/")
    gone = [n for n in before if n.endswith(("/scale", "_linear/bias"))]
    assert after.keys() == before.keys() - set(gone)


# --- QKFormer's entrances -------------------------------------------------------------

ENTRANCES = {  # (pool, first): side of the map that 8 pixels become, stride
    "small": (("00", True), 8, 1),
    "large": (("110", True), 2, 2),  # behind its first pool
    "later": (("01", False), 4, 2),
    "later, large": (("10", False), 4, 2),
}


@pytest.mark.parametrize("name", ENTRANCES)
def test_the_shortcut_of_an_entrance_skips_the_pixels_that_pools_do(name, quick_jit):
    """Its convolution reads every other pixel, from the first one on."""
    (pool, first), side, stride = ENTRANCES[name]
    rule = neuron.resolve(dict(v_th=0.7))
    layer = Embed(8, pool, first, rule, jnp.dtype("float64"))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 3, (2, 2, 8, 8, 4)), jnp.float64)
    made = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, True))
    variables = jax.tree.map(lambda a: jnp.asarray(rng.uniform(0, 1, a.shape)), made)
    kept = ["spikes", "intermediates", "batch_stats"]
    how = dict(mutable=kept, capture_intermediates=True)
    out, kept = quick_jit(lambda v, x: layer.apply(v, x, True, **how))(variables, x)
    spikes = {key: s["out"][0] for key, s in kept["spikes"].items()}
    last = f"neuron_{len(pool) - 1}"
    assert out.shape == (2, 2, side, side, 8)
    np.testing.assert_array_equal(out, spikes[last] + spikes["res_neuron"])
    source = np.asarray(spikes["neuron_0"] if first else x)
    assert source.shape[-1] == 4 and len(np.unique(source)) > 1
    read = source[:, :, ::stride, ::stride]
    (got,) = kept["intermediates"]["res_conv"]["__call__"]
    same(got, read @ np.asarray(variables["params"]["res_conv"]["kernel"]))
