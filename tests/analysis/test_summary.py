import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from a2os2a_jax import models
from a2os2a_jax.analysis import summary
from a2os2a_jax.models import families
from a2os2a_jax.modules import attention, neuron

SMALL = dict(num_classes=10, image_size=8, in_channels=1, heads=2, timesteps=3)


def small(variant="2-16", **options):
    model = models.build("columnar", variant, **(SMALL | dict(pool="0001") | options))
    return summary.layers(model, (8, 8, 1))


def tokens(**options):
    how = dict(SMALL, image_size=None, stem="tokens", in_channels=7)
    return summary.layers(models.build("columnar", "1-16", **how, **options), (5, 7))


def by_name(rows):
    return {row.name: row for row in rows}


# ---- the rows


@pytest.mark.parametrize("variant", families.COLUMNAR)
def test_the_sum_is_the_published_number(variant):
    classes, size, stem, count, *_ = families.COLUMNAR[variant]
    how = dict(num_classes=classes, image_size=size, stem=stem)
    rows = summary.layers(models.build("columnar", variant, **how), (size, size, 3))
    assert summary.total(rows) == count
    depth = int(variant.split("-")[0])
    text = summary.text(rows)
    assert f"total: {count:,} parameters; {5 + 6 * depth} layers fire" in text
    assert f"block_0 to block_{depth - 1}, x {depth}: " in text
    assert len(text.splitlines()) == 1 + 15 + 1 + 18 + 1 + 2  # whatever the depth
    assert max(map(len, text.splitlines())) <= 96


def test_rows_stand_in_the_order_of_the_data():
    names = [row.name for row in small("1-16")]
    stem = [f"stem/{x}_{i}" for i in range(3) for x in ("conv", "bn", "neuron")]
    stem += [f"stem/{x}" for x in ("conv_3", "bn_3", "rpe_neuron", "rpe_conv")]
    parts = ["q_linear", "q_bn", "q_neuron", "k_linear", "k_bn"]
    parts += ["v_linear", "v_bn", "v_neuron", "attention_neuron"]
    parts = [f"attention/{x}" for x in (*parts, "proj_linear", "proj_bn")]
    mlp = [f"mlp/{x}" for x in ("fc1_linear", "fc1_bn", "fc1_neuron")]
    block = [*parts, "mid_neuron", *mlp, "mlp/fc2_linear", "mlp/fc2_bn", "out_neuron"]
    assert names == [
        *(*stem, "stem/rpe_bn", "stem_neuron"),
        *(f"block_0/{name}" for name in block),
        "head",
    ]


def test_a_row_says_what_the_layer_is():
    rows = by_name(small())
    shape = ("B", 1, 8, 8, 2)  # a static image: computed once
    kernel = {"kernel": (3, 3, 1, 2)}
    assert rows["stem/conv_0"] == ("stem/conv_0", "conv 3x3", shape, kernel, "", ())
    assert rows["stem/neuron_0"][1:5] == ("LIF", ("B", 3, 8, 8, 2), {}, "{0, 1}")
    norm = rows["stem/rpe_bn"]
    assert (norm.kind, norm.params) == ("BN", {"scale": (16,), "bias": (16,)})
    fc1 = rows["block_1/mlp/fc1_linear"]
    assert fc1[1:3] == ("linear", ("B", 3, 16, 64))
    assert fc1.params == {"kernel": (16, 64), "bias": (64,)} and fc1.count == 1088
    v = rows["block_0/attention/v_neuron"]
    assert (v.kind, v.fires, v.neurons) == ("Ternary", "{-1, 0, 1}", 16 * 16)
    assert rows["head"].shape == ("B", 10) and rows["head"].neurons == 0


def shapes(tree, cut=None):
    """{"block_0/mid_neuron": shape}."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {name(path[:cut]): leaf.shape for path, leaf in flat}


@pytest.mark.parametrize("kind", attention.KINDS)
def test_every_kind_has_all_its_parameters_and_firing_layers(kind):
    how = SMALL | dict(timesteps=2, pool="0001", attention=kind)
    model = models.build("columnar", "1-16", **how)
    x = jnp.zeros((1, 8, 8, 1))
    made = jax.eval_shape(model.init, jax.random.key(0), x)
    how = functools.partial(model.apply, mutable=["spikes"])
    _, sown = jax.eval_shape(how, made, x)
    rows = summary.layers(model, (8, 8, 1))
    params = {f"{r.name}/{k}": s for r in rows for k, s in r.params.items()}
    assert params == shapes(made["params"])
    fire = {row.name: (1, *row.shape[1:]) for row in rows if row.fires}
    assert fire == shapes(sown["spikes"], -2)
    frozen = {"frozen_qk": "qk", "frozen_v": "v"}.get(kind, "")
    frozen = [f"block_0/attention/{x}_linear" for x in frozen]
    assert [row.name for row in rows if row.frozen] == frozen


SIZES = dict(heads=(1, 2), patch_sizes=(2, 1), group_size=16)
OTHERS = {  # family: variant and options
    "spikformer": ("1-16", {}),
    "spikingformer": ("1-16", {}),
    "spike_driven": ("1-16", {}),
    "qkformer": ("3-16", {}),
    "spikingresformer": ("1.1-16.32", SIZES),
}


def test_every_family_is_among_them():
    assert {"columnar", *OTHERS} == families.FAMILIES.keys()


@pytest.mark.parametrize("name", OTHERS)
def test_every_family_has_all_its_parameters_and_firing_layers(name):
    variant, options = OTHERS[name]
    model = models.build(name, variant, **SMALL | options)
    x = jnp.zeros((1, 8, 8, 1))
    made = jax.eval_shape(model.init, jax.random.key(0), x)
    how = functools.partial(model.apply, mutable=["spikes"])
    _, sown = jax.eval_shape(how, made, x)
    rows = summary.layers(model, (8, 8, 1))
    params = {f"{r.name}/{k}": s for r in rows for k, s in r.params.items()}
    assert params == shapes(made["params"])
    fire = {row.name: (1, *row.shape[1:]) for row in rows if row.fires}
    assert fire == shapes(sown["spikes"], -2)


def test_sequences_tokens_and_learnt_time_constants():
    model = models.build("columnar", "1-16", **SMALL, pool="0001")
    rows = by_name(summary.layers(model, (5, 8, 8, 1)))
    assert rows["stem/conv_0"].shape == ("B", 5, 8, 8, 2)
    rows = by_name(tokens(neuron=dict(learn_tau=True)))
    assert rows["stem/linear"].shape == ("B", 1, 5, 16)
    lif = rows["block_0/mid_neuron"]
    assert (lif.kind, lif.params, lif.shape) == ("PLIF", {"w": ()}, ("B", 3, 5, 16))
    assert rows["block_0/attention/v_neuron"].kind == "Ternary"
    rows = by_name(tokens(neuron=dict(rule="guo")))
    assert rows["block_0/attention/v_neuron"][1:5:3] == ("Guo", "{-1, 0, 1}")
    with pytest.raises(ValueError, match=r"images: got .* expected \[B, 8, 8, 1\]"):
        summary.layers(model, (9, 9, 1))


def test_recomputing_blocks_changes_no_row():
    assert small(remat=True, drop_path=0.1) == small()


def test_what_a_caller_freezes_is_marked_too():
    model = models.build("columnar", "1-16", **SMALL, pool="0001")
    part = "block_0/mlp/fc1_linear/ker"  # of a name: not enough
    rows = summary.layers(model, (8, 8, 1), ["stem/.*", "head/bias", part])
    frozen = by_name(rows)
    assert frozen["block_0/mlp/fc1_linear"].frozen == ()
    assert frozen["stem/bn_0"].frozen == ("bias", "scale")
    assert frozen["head"].frozen == ("bias",) and frozen["head"].frozen_count == 10
    text = summary.text(rows)
    assert "16x10 + 10 (frozen)\n" in text and "2 + 2, frozen\n" in text
    still = sum(row.count for row in rows if row.name.startswith("stem/")) + 10
    assert f"({still:,} of them frozen)" in text


def test_no_parameter_is_lost_whatever_the_model():
    class Holder(nn.Module):
        """Its parameter is made in a method that is not __call__."""

        @nn.compact
        def values(self):
            return self.param("table", nn.initializers.ones, (2, 4))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            shared = nn.Dense(4, name="shared")
            x = shared(shared(x)) * self.param("gain", nn.initializers.ones, (1, 4))
            return x + Holder(name="holder").values().sum()

    rows = by_name(summary.layers(Model(), (4,)))
    assert {name: row.count for name, row in rows.items()} == {
        "shared": 20,
        "": 4,
        "holder": 8,
    }
    assert "total: 32 parameters" in summary.text(list(rows.values()))


@pytest.mark.parametrize(
    ("module", "values"),
    [
        (neuron.LIF(), "{0, 1}"),
        (neuron.IF(), "{0, 1}"),
        (neuron.Ternary(), "{-1, 0, 1}"),
        (neuron.Guo(form="ternary"), "{-1, 0, 1}"),
        (neuron.Integer(levels=3), "{0, ..., 3}"),
        (neuron.Integer(levels=4, normalise=True), "{0, 1/4, ..., 1}"),
    ],
)
def test_alphabets(module, values):
    assert summary.alphabet(module) == values


# ---- the text


def test_the_table_is_narrow_and_complete():
    text = summary.text(small("3-64"))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 88
    assert "block_0 to block_2, x 3: 50,688 parameters each" in lines
    assert "stem/conv_0                   conv 3x3  [B, 1, 8, 8, 8] " in text
    assert lines[-1].startswith("axes: [B, T, H, W, C], [B, T, N, D], [B, classes]; T")
    neurons = 64 * (8 + 16 + 32) + 2 * 16 * 64 + 3 * (5 * 16 * 64 + 16 * 256)
    assert lines[-2].endswith(f"; 23 layers fire, {neurons:,} neurons")
    assert "block_0: 50,688 parameters\n" in summary.text(small("1-64"))


def _rows(*names, count=4):
    return [summary.Layer(n, "linear", ("B", 4), {"kernel": (count,)}) for n in names]


@pytest.mark.parametrize(
    ("rows", "blocks"),
    [
        (_rows("block_0/a", "block_1/a", "head"), [["block_0", "block_1"], []]),
        # another size, another layer, another stem, something in between: not alike
        (_rows("block_0/a") + _rows("block_1/a", count=5), [["block_0"], ["block_1"]]),
        (_rows("block_0/a", "block_1/b"), [["block_0"], ["block_1"]]),
        (_rows("block_0/a", "stage_1/a"), [["block_0"], ["stage_1"]]),
        (_rows("block_0/a", "x", "block_1/a"), [["block_0"], [], ["block_1"]]),
        # within a stage
        (
            _rows("stage_0/block_0/a", "stage_0/block_1/a", "stage_1/block_0/a"),
            [["stage_0/block_0", "stage_0/block_1"], ["stage_1/block_0"]],
        ),
        (_rows("conv_0", "conv_1"), [[]]),
    ],
)
def test_only_blocks_that_are_alike_are_one(rows, blocks):
    assert [names for names, _ in summary.groups(rows)] == blocks
    told = [
        f"{prefix}/{row.name}".lstrip("/")
        for names, members in summary.groups(rows)
        for prefix in (names or [""])
        for row in members
    ]
    assert told == [row.name for row in rows]
    assert summary.total(rows) == sum(math.prod(r.params["kernel"]) for r in rows)
