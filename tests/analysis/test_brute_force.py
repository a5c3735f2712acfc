"""The counting loops give the model's logits, and counts that were worked by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from a2os2a_jax import models
from tests.analysis import brute_force as loops

T, SIZE, BATCH = 2, 8, 2
OPTIONS = dict(image_size=SIZE, num_classes=10, timesteps=T, heads=2, pool="0011")


def made(model, images, seed=0):
    """Variables under which every layer fires: membranes of about unit variance, out of
    maps whose variance is as small as that of fresh weights, so that eps matters."""
    rng, small = np.random.default_rng(seed), 0.03

    def leaf(path, want):
        module, name, shape = path[-2].key, path[-1].key, want.shape
        if name == "kernel":
            return rng.normal(0, small * 3 / np.sqrt(np.prod(shape[:-1])), shape)
        if name == "scale":
            return rng.uniform(0.7, 1.3, shape)
        if name == "var":
            return small**2 * rng.uniform(0.5, 1.5, shape)
        norm_bias = name == "bias" and "bn" in module
        return rng.normal(0, 0.4 if norm_bias else 0.4 * small, shape)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(leaf, shapes)


def folded(variables, shown):
    """Every BN in the map before it, and the head divided by `shown`; in numpy."""
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    stats = traverse_util.flatten_dict(variables["batch_stats"], sep="/")
    out = {"head/kernel": flat["head/kernel"] / shown, "head/bias": flat["head/bias"]}
    for name in (key.removesuffix("/scale") for key in flat if key.endswith("/scale")):
        factor = flat[f"{name}/scale"] / np.sqrt(stats[f"{name}/var"] + 1e-5)
        before = name.replace("bn", "conv" if name.startswith("stem") else "linear")
        own = flat.get(f"{before}/bias", 0.0)
        out[f"{before}/kernel"] = flat[f"{before}/kernel"] * factor
        out[f"{name}/bias"] = (
            flat[f"{name}/bias"] + (own - stats[f"{name}/mean"]) * factor
        )
    return traverse_util.unflatten_dict(out, sep="/")


def check(family, how, *, events=False, depth=1):
    """Equal logits, all layers awake; (additions, zeros skipped, spikes by layer)."""
    model = models.build(family, f"{depth}-16", dtype="float64", **OPTIONS)
    shape = (BATCH, T, SIZE, SIZE, 3) if events else (BATCH, SIZE, SIZE, 3)
    images = np.random.default_rng(1).normal(size=shape)
    variables = made(model, images)
    run = functools.partial(model.apply, mutable=["spikes"])
    run = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})
    want, sown = jax.device_get(run(variables, jnp.asarray(images)))
    flat = traverse_util.flatten_dict(sown["spikes"], sep="/")
    spikes = {name.removesuffix("/out"): s for name, (s,) in flat.items()}
    rates = {name: np.mean(s != 0) for name, s in spikes.items()}
    assert all(0.02 < rate < 0.7 for rate in rates.values()), rates
    shown = T * 4 if family == "columnar" else T
    how = how | dict(family=family, timesteps=T, heads=2, pool="0011")
    logits, *counts = loops.count(folded(variables, shown), images, **how)
    assert want.dtype == np.float64 and np.ptp(want, axis=0).max() > 1e-3
    np.testing.assert_allclose(logits, want, rtol=1e-10, atol=1e-10)
    return *counts, spikes


@pytest.mark.parametrize("order", ["qk_v", "q_kv"])
@pytest.mark.parametrize("events", [False, True], ids=["static", "events"])
def test_columnar_logits_are_the_models(x64, order, events):
    made, skipping, spikes = check("columnar", dict(order=order), events=events)
    assert {name for name in made if made[name] != skipping[name]} == {
        "block_0/attention"
    }
    # N = 4 tokens, D = 16, 10 classes; kernels [I, O] cost O additions a spike.
    nnz = {name: int(np.count_nonzero(s)) for name, s in spikes.items()}
    seen = BATCH * T
    assert made["stem/bn_0"] == (seen if events else BATCH) * 64 * 2
    assert made["stem/neuron_0"] == 2 * seen * 64 * 2
    assert made["block_0/attention/q_linear"] == 16 * nnz["stem_neuron"]
    assert made["block_0/attention/v_neuron"] == 3 * seen * 4 * 16
    assert made["block_0/mlp/fc2_linear"] == 16 * nnz["block_0/mlp/fc1_neuron"]
    assert made["block_0"] == 2 * seen * 4 * 16
    assert made["head"] == 10 * (nnz["block_0/out_neuron"] + seen * 4 + BATCH)
    per_spike = {"qk_v": 4, "q_kv": 8}[order]  # N, or d of a head
    q, v = (nnz[f"block_0/attention/{name}_neuron"] for name in "qv")
    assert made["block_0/attention"] == per_spike * (q + v)
    assert "stem/conv_0" not in made


def test_spike_driven_logits_are_the_models(x64):
    # tau 2 and a decayed input double the thresholds, 1 and the 0.5 of the attention.
    how = dict(v_th=2.0, attention_v_th=1.0)
    made, skipping, spikes = check("spike_driven", how, depth=2)
    assert made == skipping
    seen = BATCH * T
    k, v = (spikes[f"block_0/attention/{name}_neuron"] for name in "kv")
    assert made["block_0/attention"] == np.count_nonzero(k * v)
    assert made["block_0/attention/v_neuron"] == 2 * seen * 4 * 16
    assert made["block_0/attention/attention_neuron"] == 2 * seen * 16
    assert made[""] == seen * 4 * 16
    assert made["head_neuron"] == 2 * seen * 16
    head = int(np.count_nonzero(spikes["head_neuron"]))
    assert made["head"] == 10 * (head + seen + BATCH)
    assert made["block_0/out_neuron"] == 2 * seen * 4 * 16
    assert "block_1/out_neuron" not in made


def counted(function, *args, **how):
    """(result, additions, additions with zeros skipped) of one part."""
    tally = loops.Tally()
    out = function(tally, "here", *args, **how)
    assert set(tally.made) <= {"here"}
    return out, tally.made["here"], tally.skipping["here"]


def test_three_spikes_under_a_linear_map_of_two_outputs():
    kernel = np.array([[1.0, 10], [2, 0], [3, 30], [4, 40]])  # the 0 is not skipped
    out, made, skipping = counted(loops.linear, np.array([[1.0, 1, 0, -1]]), kernel)
    np.testing.assert_array_equal(out, [[-1, -30]])
    assert made == skipping == 6


@pytest.mark.parametrize(
    ("spots", "want"),
    [([(0, 0)], 4), ([(0, 2)], 6), ([(2, 2)], 9), ([(0, 0), (2, 2)], 13), ([], 0)],
    ids=["corner", "edge", "middle", "two", "none"],
)
def test_spikes_under_a_3x3_convolution(spots, want):
    image = np.zeros((1, 1, 4, 4, 1))
    for y, x in spots:
        image[0, 0, y, x] = 1
    kernel = np.arange(1.0, 10).reshape(3, 3, 1, 1)
    out, made, skipping = counted(loops.conv, image, kernel)
    assert made == skipping == want
    assert out.shape == (1, 1, 4, 4, 1)


def test_a_corner_spike_is_seen_through_the_taps_that_reach_it():
    image = np.zeros((1, 1, 4, 4, 1))
    image[0, 0, 0, 0] = 1
    kernel = np.arange(1.0, 10).reshape(3, 3, 1, 1)
    out = loops.conv(loops.Tally(), "here", image, kernel)[0, 0, :, :, 0]
    np.testing.assert_array_equal(out[:2, :2], [[5, 4], [2, 1]])
    assert np.count_nonzero(out) == 4


def test_a_full_image_of_3x3_has_49_taps_inside():
    full = np.ones((1, 1, 3, 3, 2))
    _, made, _ = counted(loops.conv, full, np.ones((3, 3, 2, 5)))
    assert made == 49 * 2 * 5


def test_products_of_the_first_convolution_and_comparisons_are_not_counted():
    image = np.arange(4.0).reshape(1, 1, 2, 2, 1)
    out = loops.first_conv(image, np.full((3, 3, 1, 1), 0.5))
    np.testing.assert_array_equal(out.ravel(), [3, 3, 3, 3])
    pooled = loops.max_pool(-np.arange(1.0, 17).reshape(1, 1, 4, 4, 1))
    np.testing.assert_array_equal(pooled.ravel(), [-1, -2, -5, -6])


def test_a_neuron_adds_twice_a_step_and_a_ternary_one_three_times():
    x = np.array([0.75, 0.75, -2, 0.5, 2]).reshape(1, 5, 1)
    # h: 0.75, 1.125 (fires, v = 0), -2, -0.5, 1.75 (fires)
    out, made, skipping = counted(loops.neuron, x, 1.0)
    np.testing.assert_array_equal(out.ravel(), [0, 1, 0, 0, 1])
    assert made == skipping == 2 * 5
    # the third fires as well, so that the last two start from 0
    out, made, skipping = counted(loops.neuron, x, 1.0, ternary=True)
    np.testing.assert_array_equal(out.ravel(), [0, 1, -1, 0, 1])
    assert made == skipping == 3 * 5
    on_edge = np.array([1.0, -1]).reshape(1, 2, 1)
    out, _, _ = counted(loops.neuron, on_edge, 1.0, ternary=True)
    np.testing.assert_array_equal(out.ravel(), [1, -1])


# N = 2 tokens, d = 3: two spikes in Q, three in V, one K that is 0.
Q = np.array([[1.0, 0, 1], [0, 0, 0]])
K = np.array([[2.0, 5, 0], [4, 1, 3]])
V = np.array([[1.0, 0, -1], [0, 0, 1]])


def test_the_product_scores_first():
    # scores [[2 + 0, 4 + 3], [0, 0]]: 2 spikes x 2 keys, one of them a zero of K.
    # out: 3 spikes x 2 queries, those of the second query on scores of 0.
    out, made, skipping = counted(loops.scores_first, Q, K, V)
    np.testing.assert_array_equal(out, [[2, 0, 7 - 2], [0, 0, 0]])
    assert (made, skipping) == (4 + 6, 3 + 3)


def test_the_product_context_first():
    # context [[2, 0, 4 - 2], [5, 0, 1 - 5], [0, 0, 3 - 0]]: 3 spikes x 3 channels of K,
    # of which 2 meet the 0. out: 2 spikes x 3, of which (0, e = 1), (2, e = 0) and
    # (2, e = 1) read a 0.
    out, made, skipping = counted(loops.context_first, Q, K, V)
    np.testing.assert_array_equal(out, [[2, 0, 2 + 3], [0, 0, 0]])
    assert (made, skipping) == (9 + 6, 7 + 3)


def test_sums_biases_and_the_head():
    u = np.arange(6.0).reshape(1, 1, 3, 2)
    out, made, _ = counted(loops.over_tokens, u)
    assert made == 6 and out.tolist() == [[[6, 9]]]
    out, made, _ = counted(loops.bias, u, np.array([1.0, 2]))
    assert made == 6 and out[0, 0, 2].tolist() == [5, 7]
    out, made, _ = counted(loops.plus, u, u)
    assert made == 6 and out[0, 0, 2].tolist() == [8, 10]
    # [B, T, N, D] = [1, 2, 2, 3], 5 classes, 3 spikes: 15 weights, 4 vectors, a bias
    s = np.zeros((1, 2, 2, 3))
    s[0, 0, 0, 0] = s[0, 0, 0, 1] = s[0, 1, 1, 2] = 1
    params = {"kernel": np.arange(15.0).reshape(3, 5), "bias": np.ones(5)}
    tally = loops.Tally()
    logits = loops.readout(tally, s, params)
    np.testing.assert_array_equal(logits, [[16, 19, 22, 25, 28]])
    assert tally.made == tally.skipping == {"head": 15 + 4 * 5 + 5}


def test_what_is_no_spike_is_refused():
    with pytest.raises(ValueError, match="signed: got a spike of 2"):
        loops.linear(loops.Tally(), "here", np.array([[0, 2.0]]), np.ones((2, 1)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(family="resnet"), "family is 'resnet'"),
        (dict(order="auto"), "order is 'auto'"),
        (dict(head="counts"), "head is 'counts'"),
        (dict(timesteps=3), r"images \(1, 2, 8, 8, 3\), expected .* \[B, 3, H, W, C\]"),
    ],
)
def test_bad_calls_are_named(how, message):
    how = dict(family="columnar", timesteps=2, heads=2, pool="0011") | how
    with pytest.raises(ValueError, match=f"count: {message}"):
        loops.count({}, np.zeros((1, 2, 8, 8, 3)), **how)
