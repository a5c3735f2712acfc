import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from a2os2a_jax.models import spikingresformer
from a2os2a_jax.models.spikingresformer import (
    GROUP_SIZE,
    HEAD_DIM,
    PATCH_SIZES,
    VARIANTS,
    SpikingResformer,
    check,
)
from a2os2a_jax.modules import neuron

KEPT = ["spikes", "batch_stats"]
SMALL = dict(pairs=(1, 1), planes=(16, 32), heads=(1, 2), patch_sizes=(2, 1))
SMALL |= dict(group_size=16, stem="cifar", image_size=8)


def build(dtype="float32", **changes):
    how = SMALL | dict(num_classes=10, in_channels=3, timesteps=3) | changes
    options = neuron.resolve(dict(decay_input=True))
    return SpikingResformer(**how, neuron=options, dtype=jnp.dtype(dtype))


def published(name, num_classes):
    sizes = VARIANTS[name]
    heads = tuple(width // HEAD_DIM for width in sizes.planes)
    how = sizes._asdict() | dict(heads=heads, patch_sizes=PATCH_SIZES)
    return build(**how, group_size=GROUP_SIZE, num_classes=num_classes)


def shapes_of(model, train=False):
    images = jnp.zeros((2, *model.frame), model.dtype)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train))


def names(tree):
    return set(traverse_util.flatten_dict(tree, sep="/"))


def made_variables(model, seed=0):
    """As initialised, with scales and biases that make every layer fire."""
    rng = np.random.default_rng(seed)

    def leaf(path, want):
        name = path[-1].key
        value = np.full(want.shape, float(name == "var"))
        if name == "kernel":
            value = rng.normal(0, 0.1, want.shape)
        elif path[0].key == "params":
            value = rng.normal(1.5 if name == "scale" else 0.3, 0.3, want.shape)
        return jnp.asarray(value, want.dtype)

    return jax.tree_util.tree_map_with_path(leaf, dict(shapes_of(model)))


class Tiny:
    """One model in float64, and what it gives for a sequence, compiled once.

    Its running statistics are those of the sequence: the rates as they are after a
    first step from zero, means and variances without the tenth that BN takes of them.
    """

    def __init__(self, quick_jit):
        self.model, self.jit = build("float64"), quick_jit
        draw = np.random.default_rng(1).normal(size=(4, 3, 8, 8, 3))
        self.images = jnp.asarray(draw)
        self.run = quick_jit(
            functools.partial(self.model.apply, mutable=KEPT),
            static_argnames=("train", "per_step"),
        )
        start = made_variables(self.model)
        _, kept = self.run(start, self.images, train=True, per_step=True)
        stats = jax.tree_util.tree_map_with_path(
            lambda path, new, old: (
                new if path[-1].key.endswith("_rate") else (new - 0.9 * old) / 0.1
            ),
            kept["batch_stats"],
            start["batch_stats"],
        )
        self.variables = start | {"batch_stats": stats}

    @functools.cached_property
    def evaluated(self):
        return self.run(self.variables, self.images, per_step=True)


@pytest.fixture(scope="module")
def tiny(quick_jit):
    with jax.enable_x64(True):
        yield Tiny(quick_jit)


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("ti", 1000, 11_180_992),
        pytest.param("s", 1000, 17_813_824, marks=pytest.mark.slow),
        pytest.param("m", 1000, 35_601_472, marks=pytest.mark.slow),
        pytest.param("l", 1000, 60_375_680, marks=pytest.mark.slow),
        ("cifar", 10, 10_793_152),
    ],
)
def test_as_many_parameters_as_the_public_code(name, classes, count):
    params = shapes_of(published(name, classes))["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count
    with_head = VARIANTS[name].planes[-1] * classes
    assert math.prod(params["head"]["kernel"].shape) == with_head
    assert params["head"].keys() == {"kernel"}


def test_the_table_is_complete():
    assert list(VARIANTS) == ["ti", "s", "m", "l", "cifar"]


DSSA = {"y_conv/kernel", "proj_linear/kernel"}
DSSA |= {f"{bn}_bn/{leaf}" for bn in ("y", "proj") for leaf in ("scale", "bias")}
GWFFN = {"up_linear/kernel", "group_conv/kernel", "down_linear/kernel"}
GWFFN |= {
    f"{bn}_bn/{leaf}" for bn in ("up", "group", "down") for leaf in ("scale", "bias")
}
CONV = {"conv/kernel", "bn/scale", "bn/bias"}


@pytest.mark.parametrize("changes", [{}, dict(remat=True)])
def test_names(changes):
    shapes = shapes_of(build(**changes), train=True)
    pair = {f"attention/{x}" for x in DSSA} | {f"mlp/{x}" for x in GWFFN}
    want = {f"stem/{x}" for x in CONV} | {"head/kernel"}
    want |= {f"stage_{k}/block_0/{x}" for k in (1, 2) for x in pair}
    want |= {f"stage_2/down/{x}" for x in CONV}
    assert names(shapes["params"]) == want
    rates = {x for x in names(shapes["batch_stats"]) if x.endswith("_rate")}
    assert rates == {
        f"stage_{k}/block_0/attention/{x}_rate" for k in (1, 2) for x in "xa"
    }


def test_shapes_of_the_large_stem():
    params = shapes_of(published("ti", 1000))["params"]
    stem = params["stem"]["conv"]["kernel"].shape
    assert stem == (7, 7, 3, 64)
    last = params["stage_3"]["block_2"]
    assert "block_3" not in params["stage_3"] and "down" not in params["stage_1"]
    assert last["attention"]["y_conv"]["kernel"].shape == (1, 1, 384, 768)
    assert last["mlp"]["group_conv"]["kernel"].shape == (3, 3, 64, 1536)
    y = params["stage_1"]["block_0"]["attention"]["y_conv"]["kernel"]
    assert y.shape == (4, 4, 64, 128)


def test_every_layer_fires(tiny, layers):
    got = layers(tiny.evaluated[1], 0.01, 0.9)
    pair = ("in_neuron", "attention/attention_neuron", "attention/out_neuron")
    pair += ("mid_neuron", "mlp/group_neuron", "mlp/down_neuron")
    want = {f"stage_{k}/block_0/{name}" for k in (1, 2) for name in pair}
    assert set(got) == want | {"stage_2/down/neuron"}
    attention = got["stage_1/block_0/attention/attention_neuron"]
    assert attention.shape == (4, 3, 1, 16, 64)  # 4 x 4 keys, 8 x 8 queries
    attention = got["stage_2/block_0/attention/attention_neuron"]
    assert attention.shape == (4, 3, 2, 16, 16)


def test_the_scores_are_the_mean_over_steps(tiny):
    logits, _ = tiny.run(tiny.variables, tiny.images)
    per_step = tiny.evaluated[0]
    assert per_step.shape == (4, 3, 10) and logits.shape == (4, 10)
    assert np.ptp(per_step, axis=(0, 1)).min() > 1e-2
    np.testing.assert_allclose(logits, per_step.mean(1), atol=1e-12)


def test_the_head_reads_the_mean_of_the_last_membranes(tiny):
    """Sum of the residual branches by hand, out of what the modules hand on."""

    @tiny.jit
    def run(variables, images):
        return tiny.model.apply(
            variables,
            images,
            mutable=["intermediates", "features"],
            capture_intermediates=True,
        )

    logits, kept = run(tiny.variables, tiny.images)
    outputs = kept["intermediates"]["stage_2"]
    u = outputs["down"]["__call__"][0]
    for branch in ("attention", "mlp"):
        u = u + outputs["block_0"][branch]["__call__"][0]
    np.testing.assert_allclose(u, outputs["__call__"][0], atol=1e-12)
    features = kept["features"]["out"][0]
    np.testing.assert_allclose(features, u.mean((1, 2)), atol=1e-12)
    kernel = tiny.variables["params"]["head"]["kernel"]
    np.testing.assert_allclose(logits, features @ kernel, atol=1e-12)


def test_one_frame_at_a_time_gives_the_same(tiny):
    init, step = tiny.model.stream(tiny.variables)
    state, step = tiny.jit(init, static_argnums=0)(4), tiny.jit(step)
    for t in range(3):
        state, logits = step(state, tiny.images[:, t])
        np.testing.assert_allclose(logits, tiny.evaluated[0][:, t], atol=1e-12)


def test_an_example_does_not_see_the_others(tiny):
    order = np.array([2, 0, 3, 1])
    logits, _ = tiny.run(tiny.variables, tiny.images[order], per_step=True)
    np.testing.assert_allclose(logits, tiny.evaluated[0][order], atol=1e-12)


@pytest.fixture(scope="module")
def still(tiny):
    """{train: (of a static image, of the same image as frames)}."""
    image = tiny.images[:, 0]
    frames = jnp.repeat(image[:, None], 3, 1)

    def run(x, train):
        return tiny.run(tiny.variables, x, train=train, per_step=True)

    return {train: [run(x, train) for x in (image, frames)] for train in (False, True)}


@pytest.mark.parametrize("train", [False, True])
def test_a_static_image_is_its_own_sequence(still, train):
    (got, kept), (want, frames) = jax.device_get(still[train])
    np.testing.assert_allclose(got, want, atol=1e-10)
    close = functools.partial(np.testing.assert_allclose, atol=1e-10)
    jax.tree.map(close, kept, frames)


def test_training_moves_every_statistic(still, tiny):
    (_, kept), _ = still[True]
    old = tiny.variables["batch_stats"]
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), kept["batch_stats"], old)
    assert all(jax.tree.leaves(moved))
    (_, kept), _ = still[False]
    chex.assert_trees_all_equal(kept["batch_stats"], old)


def test_remat_is_there_when_asked_for():
    def traced(model):
        shapes = dict(shapes_of(model))
        run = functools.partial(model.apply, train=True, mutable=KEPT)
        return str(jax.make_jaxpr(run)(shapes, jnp.zeros((1, 8, 8, 3))))

    found = [traced(build(remat=remat)).count("policy=") for remat in (True, False)]
    assert found == [2, 0]


@pytest.mark.slow
def test_remat_changes_no_gradient(tiny):
    def gradient(model):
        def loss(params):
            both = tiny.variables | {"params": params}
            out, kept = model.apply(both, tiny.images, True, mutable=["batch_stats"])
            return (out * jnp.cos(jnp.arange(10.0))[None]).sum(), kept

        grad = tiny.jit(jax.grad(loss, has_aux=True))
        return grad(tiny.variables["params"])

    got, want = (gradient(m) for m in (build("float64", remat=True), tiny.model))
    close = functools.partial(np.testing.assert_allclose, atol=1e-9, rtol=1e-9)
    jax.tree.map(close, got, want)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(want[0]))


def test_drop_path_grows_with_depth(monkeypatch):
    seen, sound = [], spikingresformer.Pair

    def spy(**how):
        seen.append(how["drop_path"])
        return sound(**how)

    monkeypatch.setattr(spikingresformer, "Pair", spy)
    shapes_of(build(pairs=(1, 2), drop_path=0.3))
    np.testing.assert_allclose(seen, [0.1, 0.2, 0.3])


def test_a_dropped_path_leaves_the_membrane_as_it_is():
    how = dict(heads=1, side=2, patch=1, group_size=4, mlp_ratio=1, dtype=jnp.float32)
    pair = spikingresformer.Pair(**how, neuron=neuron.resolve(None), drop_path=1.0)
    u = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 4, 4)), "float32")
    shapes = jax.eval_shape(lambda: pair.init(jax.random.key(0), u, False))
    variables = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), dict(shapes))
    rngs = {"drop_path": jax.random.key(1)}
    out, _ = pair.apply(variables, u, True, rngs=rngs, mutable=["batch_stats"])
    np.testing.assert_array_equal(out, u)
    assert np.abs(pair.apply(variables, u, False) - u).max() > 0.1


def test_bfloat16_keeps_membranes_and_parameters_in_float32():
    model = build("bfloat16", stem="imagenet", image_size=16)
    shapes = shapes_of(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("f4")}
    out, kept = jax.eval_shape(
        lambda v: model.apply(
            v,
            jnp.zeros((2, 16, 16, 3)),
            mutable=["spikes", "intermediates"],
            capture_intermediates=True,
        ),
        dict(shapes),
    )
    assert out.dtype == jnp.float32
    for module in ("stem", "stage_1", "stage_2"):
        membrane = kept["intermediates"][module]["__call__"][0]
        assert membrane.dtype == jnp.float32 and membrane.shape[:2] == (2, 3)
    assert membrane.shape == (2, 3, 4, 32)
    spikes = {leaf.dtype for leaf in jax.tree.leaves(kept["spikes"])}
    assert spikes == {jnp.dtype("bfloat16")}


def test_folded_it_has_no_statistics_and_sums_before_the_head(tiny):
    model = tiny.model.clone(folded="counts", folded_steps=3)
    shapes = shapes_of(model)
    assert shapes.keys() == {"params"}
    assert {x for x in names(shapes["params"]) if x.endswith("scale")} == set()
    assert names(shapes["params"]["head"]) == {"kernel"}
    with pytest.raises(ValueError, match="got 5 frames, expected 3"):
        jax.eval_shape(model.apply, dict(shapes), jnp.zeros((1, 5, 8, 8, 3)))


# --- sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "size", "sides"),
    [("cifar", 32, (32, 16, 8)), ("imagenet", 224, (56, 28, 14))],
)
def test_sides_of_the_stages(stem, size, sides):
    sizes = VARIANTS["ti"]
    how = dict(pairs=sizes.pairs, planes=sizes.planes, heads=(1, 3, 6))
    how |= dict(patch_sizes=PATCH_SIZES, group_size=64, stem=stem, image_size=size)
    assert check(**how) == sides


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(pairs=()), r"pairs is \(\), expected integers >= 1"),
        (dict(pairs=(1, 0)), r"pairs is \(1, 0\), expected integers >= 1"),
        (dict(planes=(16, 32.0)), r"planes is \(16, 32.0\), expected integers"),
        (dict(heads=(1,)), r"heads is \(1,\), expected 2 of them"),
        (dict(stem="sps"), r"stem is 'sps', expected one of \('cifar', 'imagenet'\)"),
        (dict(image_size=9), "image_size is 9, expected a multiple of 2 with 2"),
        (dict(image_size=None), "image_size is None, expected a multiple of 2"),
        (dict(stem="imagenet", image_size=20), "20, expected a multiple of 8 with 2"),
        (dict(heads=(1, 3)), "stage 2: dim is 32, expected a multiple of 3 heads"),
        (dict(patch_sizes=(3, 1)), "stage 1: side is 8, expected .* the patch, 3"),
        (dict(group_size=48), "stage 1: hidden width is 64, .* group size, 48"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"spikingresformer.*{message}"):
        check(**(SMALL | changes))
    if "image_size" not in changes:
        with pytest.raises(ValueError, match=message):
            shapes_of(build(**changes))
