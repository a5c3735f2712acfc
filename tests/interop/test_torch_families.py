"""The families' names: against those of public code; whole models there and back."""

import json
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax import models
from a2os2a_jax.interop import torch_families, torch_weights
from tests.interop import torch_format

# name -> (family, variant, options of `build`, options that `load` has to be told)
_HEADS = dict(heads=2, timesteps=2)
MODELS = {
    "columnar": ("columnar", "1-16", dict(stem="cifar"), _HEADS),
    "spike_driven": ("spike_driven", "1-16", dict(stem="cifar"), dict(timesteps=2)),
    "spikformer_cifar": ("spikformer", "1-16", dict(stem="cifar"), _HEADS),
    "spikformer_imagenet": (
        "spikformer",
        "1-16",
        dict(stem="imagenet", in_channels=2),
        _HEADS | dict(image_size=32),
    ),
    "spikingformer_cifar": ("spikingformer", "2-16", dict(stem="cifar"), _HEADS),
    "spikingformer_imagenet": (
        "spikingformer",
        "1-16",
        dict(stem="imagenet"),
        _HEADS | dict(image_size=32),
    ),
    "qkformer_cifar": ("qkformer", "3-32", dict(stem="cifar", mlp_ratio=2), _HEADS),
    "qkformer_imagenet": (
        "qkformer",
        "4-32",
        dict(stem="imagenet"),
        _HEADS | dict(image_size=32),
    ),
    "spikingresformer_cifar": (
        "spikingresformer",
        "1.2-8.16",
        dict(stem="cifar", heads=(1, 4), patch_sizes=(2, 1), group_size=4),
        dict(timesteps=2),
    ),
    "spikingresformer_imagenet": (
        "spikingresformer",
        "1.1-8.16",
        dict(stem="imagenet", heads=(2, 2), patch_sizes=(4, 2), group_size=8),
        dict(timesteps=2, image_size=32),
    ),
}


def filled(model, seed=0):
    """Variables of arbitrary values; nothing is compiled."""
    rng = np.random.default_rng(seed)
    shape = (1, model.image_size, model.image_size, model.in_channels)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape)))
    return jax.tree.map(
        lambda x: rng.uniform(0.1, 1, x.shape).astype(np.float32), shapes
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(name) -> (path, model, variables), each made once."""
    pytest.importorskip("safetensors")
    folder, made = tmp_path_factory.mktemp("families"), {}

    def save(name):
        if name not in made:
            family, variant, how, told = MODELS[name]
            how = dict(num_classes=5, image_size=32) | how | told
            model = models.build(family, variant, **how)
            variables = filled(model)
            path = folder / f"{name}.safetensors"
            torch_weights.save(path, model, variables)
            made[name] = path, model, variables
        return made[name]

    return save


def keys_of(path):
    from safetensors.numpy import load_file

    return load_file(path)


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_model_goes_there_and_back(saved, name):
    path, model, variables = saved(name)
    got, tree = torch_weights.load(path, **MODELS[name][3])
    assert got == model
    chex.assert_trees_all_equal(tree, variables)


def test_the_tables_cover_all_families_and_name_nothing_twice():
    assert list(torch_weights.FAMILIES) == list(models.families.FAMILIES)
    for family, table in torch_weights.FAMILIES.items():
        for stem in ("cifar", "imagenet"):
            rows = [r for r in table.rows(3) if r.stem in (None, stem)]
            theirs = [row.theirs for row in rows]
            ours = [row.ours for row in rows if row.ours]
            assert len(set(theirs)) == len(theirs), family
            assert len(set(ours)) == len(ours), family


# name of the model, where its block lies in it, the fixture of the public code's block
BLOCKS = [
    ("spikformer_cifar", "patch_embed.", "prim_spikformer_sps_cifar_a"),
    ("spikformer_cifar", "block.0.attn.", "prim_spikformer_ssa_cifar_a"),
    ("spikformer_cifar", "block.0.mlp.", "prim_spikformer_mlp_cifar_a"),
    ("spikformer_imagenet", "patch_embed.", "prim_spikformer_sps_imagenet_a"),
    ("spikformer_imagenet", "block.0.attn.", "prim_spikformer_ssa_imagenet_a"),
    ("spike_driven", "patch_embed.", "prim_sdt_sps_a"),
    ("spike_driven", "block.0.attn.", "prim_sdt_sdsa_dvs_a"),
    ("spike_driven", "block.0.mlp.", "prim_sdt_mlp_a"),
    ("spikingformer_cifar", "patch_embed.", "prim_spikingformer_tokenizer_cifar_a"),
    ("spikingformer_cifar", "block.1.attn.", "prim_spikingformer_ssa_a"),
    ("spikingformer_imagenet", "block.0.attn.", "prim_spikingformer_ssa_a"),
    ("qkformer_cifar", "patch_embed1.", "prim_qkformer_embed_init_cifar_a"),
    ("qkformer_cifar", "patch_embed2.", "prim_qkformer_embed_stage_cifar_a"),
    ("qkformer_cifar", "stage1.0.tssa.", "prim_qkformer_qkta_a"),
    ("qkformer_cifar", "stage3.0.ssa.", "prim_qkformer_ssa_a"),
    ("qkformer_imagenet", "patch_embed1.", "prim_qkformer_embed_init_imagenet_a"),
    ("qkformer_imagenet", "patch_embed3.", "prim_qkformer_embed_stage_imagenet_a"),
    ("qkformer_imagenet", "stage2.1.tssa.", "prim_qkformer_qkta_a"),
    ("qkformer_imagenet", "stage3.0.attn.", "prim_qkformer_ssa_a"),
    ("spikingresformer_cifar", "layers.0.0.", "prim_resformer_dssa_a"),
    ("spikingresformer_cifar", "layers.1.4.", "prim_resformer_gwffn_a"),
]


@pytest.mark.parametrize(("name", "prefix", "fixture"), BLOCKS)
def test_names_and_axes_are_those_of_the_public_code(
    saved, parity, name, prefix, fixture
):
    data = parity(fixture)
    want = {k.removeprefix("sd/"): v for k, v in data.items() if k.startswith("sd/")}
    exported = keys_of(saved(name)[0]).items()
    got = {k.removeprefix(prefix): v for k, v in exported if k.startswith(prefix)}
    assert set(got) == set(want)
    for key, value in want.items():
        assert got[key].ndim == value.ndim, key
        ones = [i for i, size in enumerate(value.shape) if size == 1]
        assert [got[key].shape[i] for i in ones] == [1] * len(ones), key
        assert got[key].dtype == value.dtype, key
    family = MODELS[name][0]
    neurons = [k for k in data if k.startswith("eval/spk/")]
    ours = {
        torch_weights.module_path(prefix + key.removeprefix("eval/spk/"), family)
        for key in neurons
    }
    assert len(ours) == len(neurons) > 1
    leaves = {path.rpartition("/")[2].rstrip("_0123") for path in ours}
    assert all(leaf.endswith("neuron") for leaf in leaves), leaves


WHOLE = {
    "a2os2a_cifar_tiny_a": dict(heads=3, neuron=dict(decay_input=True)),
    "sdt_cifar_tiny_a": {},
    "spikformer_cifar_tiny_a": dict(heads=3),
}


@pytest.mark.parametrize("fixture", WHOLE)
def test_an_export_has_every_key_and_shape_of_the_public_state_dict(
    parity, tmp_path, fixture
):
    pytest.importorskip("safetensors")
    data = parity(fixture)
    want = {k.removeprefix("sd/"): v for k, v in data.items() if k.startswith("sd/")}
    np.savez(tmp_path / "model.npz", **want)
    model, variables = torch_weights.load(tmp_path / "model.npz", **WHOLE[fixture])
    torch_weights.save(tmp_path / "model.safetensors", model, variables)
    got = keys_of(tmp_path / "model.safetensors")
    assert set(got) == set(want)
    for key, value in want.items():
        assert got[key].shape == value.shape and got[key].dtype == value.dtype, key
        if key.endswith("num_batches_tracked"):
            assert got[key] == 0 and value == 3
        elif "talking_heads" in key:
            assert not got[key].any()
        elif ".norm1." in key or ".norm2." in key:
            assert (got[key] == key.endswith("weight")).all()
        else:
            np.testing.assert_array_equal(got[key], value, key)


# Written by hand from the public code: a round trip cannot see two names exchanged.
NAMES = {
    "spike_driven": """
        patch_embed.proj_bn stem/bn_0         patch_embed.proj_conv3 stem/conv_3
        patch_embed.rpe_bn stem/rpe_bn        patch_embed.proj_lif stem/neuron_0
        patch_embed.proj_lif2 stem/neuron_2   patch_embed.proj_lif3 stem/rpe_neuron
        block.0.attn.shortcut_lif stem_neuron
        block.3.attn.shortcut_lif block_2/out_neuron
        block.3.attn.k_bn block_3/attention/k_bn
        block.3.attn.talking_heads_lif block_3/attention/attention_neuron
        block.3.mlp.fc1_lif block_3/mid_neuron
        block.3.mlp.fc2_lif block_3/mlp/fc1_neuron
        block.3.mlp.fc2_bn block_3/mlp/fc2_bn  head_lif head_neuron
    """,
    "spikformer": """
        patch_embed.proj_bn2 stem/bn_2         patch_embed.proj_lif3 stem/neuron_3
        patch_embed.rpe_lif stem/rpe_neuron    patch_embed.rpe_conv stem/rpe_conv
        block.1.attn.v_conv block_1/attention/v_linear
        block.1.attn.v_linear block_1/attention/v_linear
        block.1.attn.q_lif block_1/attention/q_neuron
        block.1.attn.attn_lif block_1/attention/attention_neuron
        block.1.attn.proj_lif block_1/mid_neuron
        block.1.mlp.fc1_conv block_1/mlp/fc1_linear
        block.1.mlp.fc1_lif block_1/mlp/fc1_neuron
        block.1.mlp.fc2_lif block_1/out_neuron  head head
    """,
    "spikingformer": """
        patch_embed.block0_conv stem/conv_0  patch_embed.block4_bn stem/bn_4
        patch_embed.block1_lif stem/neuron_0 patch_embed.block4_lif stem/neuron_3
        patch_embed.proj_bn stem/bn_0        patch_embed.proj4_conv stem/conv_4
        patch_embed.proj4_lif stem/neuron_3  block.0.attn.proj_lif stem_neuron
        block.12.attn.proj_lif block_11/out_neuron
        block.12.attn.proj_conv block_12/attention/proj_linear
        block.12.mlp.mlp1_lif block_12/mid_neuron
        block.12.mlp.mlp1_bn block_12/mlp/fc1_bn
        block.12.mlp.mlp2_lif block_12/mlp/fc1_neuron
        block.12.mlp.mlp2_conv block_12/mlp/fc2_linear
    """,
    "qkformer": """
        patch_embed1.proj_bn stage_1/embed/bn_0
        patch_embed1.proj1_bn stage_1/embed/bn_1
        patch_embed1.proj2_lif stage_1/embed/neuron_2
        patch_embed1.proj_res_conv stage_1/embed/res_conv
        patch_embed2.proj3_bn stage_2/embed/bn_0
        patch_embed3.proj4_lif stage_3/embed/neuron_1
        patch_embed3.proj_res_lif stage_3/embed/res_neuron
        stage1.0.tssa.k_conv stage_1/block_0/attention/k_linear
        stage2.1.tssa.attn_lif stage_2/block_1/attention/attention_neuron
        stage2.1.tssa.proj_lif stage_2/block_1/mid_neuron
        stage3.6.attn.v_bn stage_3/block_6/attention/v_bn
        stage3.1.ssa.proj_bn stage_3/block_1/attention/proj_bn
        stage1.0.mlp.mlp1_conv stage_1/block_0/mlp/fc1_linear
        stage1.0.mlp.fc2_bn stage_1/block_0/mlp/fc2_bn
        stage1.0.mlp.mlp1_lif stage_1/block_0/mlp/fc1_neuron
        stage1.0.mlp.fc2_lif stage_1/block_0/out_neuron
    """,
    "spikingresformer": """
        prologue.0 stem/conv  prologue.1.bn stem/bn  classifier head
        layers.0.0 stage_1/block_0/attention
        layers.0.0.W stage_1/block_0/attention/y_conv
        layers.0.0.norm.bn stage_1/block_0/attention/y_bn
        layers.0.0.norm_proj.bn stage_1/block_0/attention/proj_bn
        layers.0.0.activation_in stage_1/block_0/in_neuron
        layers.0.0.activation_attn stage_1/block_0/attention/attention_neuron
        layers.0.0.activation_out stage_1/block_0/attention/out_neuron
        layers.1.0.activation stage_2/down/neuron
        layers.1.0.conv stage_2/down/conv
        layers.1.0.norm.bn stage_2/down/bn
        layers.2.5.Wproj stage_3/block_2/attention/proj_linear
        layers.1.4.up.0 stage_2/block_1/mid_neuron
        layers.1.4.up.2.bn stage_2/block_1/mlp/up_bn
        layers.1.4.conv.0.0 stage_2/block_1/mlp/group_neuron
        layers.1.4.conv.0.1 stage_2/block_1/mlp/group_conv
        layers.0.1.conv.0.2.bn stage_1/block_0/mlp/group_bn
        layers.0.1.down.0 stage_1/block_0/mlp/down_neuron
        layers.0.1.down.1 stage_1/block_0/mlp/down_linear
    """,
}


@pytest.mark.parametrize("family", NAMES)
def test_modules_are_called_what_they_are(family):
    words = NAMES[family].split()
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    assert pairs == {n: torch_weights.module_path(n, family) for n in pairs}
    for name in ("layers.1.0.W", "block.0.attn.norm3", "block.0.norm1", "head.weight"):
        with pytest.raises(ValueError, match=f"{family} has no module named '{name}'"):
            torch_weights.module_path(name, family)


def test_numbers_beyond_all_models_cost_nothing():
    with pytest.raises(ValueError, match="no module named"):
        torch_weights.module_path("layers.999999999.0.W", "spikingresformer")
    assert torch_families.blocks_named(["x.123456789.y"]) == torch_families.MOST_BLOCKS


def test_a_checkpoint_of_timm_loads_with_its_moving_average(saved, tmp_path):
    path, model, variables = saved("qkformer_cifar")
    state = keys_of(path)
    tree = torch_format.checkpoint(
        state_dict={f"module.{k}": v * 0 for k, v in state.items()},
        state_dict_ema={f"module.{k}": v for k, v in state.items()},
    )
    torch_format.save(tmp_path / "model_best.pth.tar", tree)
    got, tree = torch_weights.load(tmp_path / "model_best.pth.tar", ema=True, **_HEADS)
    assert got == model
    chex.assert_trees_all_equal(tree, variables)


# --- family, stem and sizes from the tensors ------------------------------------------


def renamed(path, tmp_path, change, name="model.npz"):
    np.savez(tmp_path / name, **change(keys_of(path)))
    return tmp_path / name


def without_unused(state):
    unused = ("norm1", "norm2", "talking_heads", "num_batches_tracked")
    return {k: v for k, v in state.items() if not any(u in k for u in unused)}


@pytest.mark.parametrize("name", ["spike_driven", "spikformer_imagenet"])
def test_families_of_equal_names_are_told_by_their_axes(saved, tmp_path, name):
    path, model, _ = saved(name)
    family, _, built, _ = MODELS[name]
    how = dict(heads=model.heads, timesteps=2, image_size=32, stem=built["stem"])
    got, _ = torch_weights.load(renamed(path, tmp_path, without_unused), **how)
    assert got == model

    def squeezed(state):
        return {k: v.squeeze() for k, v in without_unused(state).items()}

    path = renamed(path, tmp_path, squeezed, "squeezed.npz")
    with pytest.raises(ValueError, match="are of spike_driven and spikformer, expect"):
        torch_weights.load(path)
    got, _ = torch_weights.load(path, family, **how)
    assert got == model


def test_what_the_event_model_of_spikformer_has_beside(saved, tmp_path):
    path, model, variables = saved("spikformer_imagenet")
    more = {"pos_embed": np.zeros((1, 4, 16)), "norm.weight": np.ones(16)}
    path = renamed(path, tmp_path, lambda state: state | more)
    told = MODELS["spikformer_imagenet"][3] | dict(attention=dict(scale=0.25))
    got, tree = torch_weights.load(path, **told)
    assert got.attention == dict(model.attention, scale=0.25)
    usual = torch_weights.load(path, heads=2)[0]
    assert (usual.image_size, usual.attention["scale"]) == (128, 0.25)
    assert torch_weights.load(path)[0].heads == 16
    chex.assert_trees_all_equal(tree, variables)


def test_the_usual_stem_and_size_where_no_name_tells_them(saved, tmp_path):
    path, *_ = saved("columnar")

    def stem(path, **how):
        model, _ = torch_weights.load(path, heads=2, **how)
        return model.pool, model.image_size

    assert stem(path) == ("0011", 32)
    assert stem(path, image_size=64) == ("1111", 64)
    assert stem(path, image_size=64, stem="cifar") == ("0011", 64)
    assert stem(path, pool="0111") == ("0111", 32)

    def of_imagenet(state):
        many = {"head.weight": np.ones((1000, 16)), "head.bias": np.ones(1000)}
        return state | many

    assert stem(renamed(path, tmp_path, of_imagenet)) == ("1111", 224)


def test_learnt_time_constants_are_read(saved, tmp_path):
    path, *_ = saved("spike_driven")

    def learnt(state):
        rows = torch_families.FAMILIES["spike_driven"].rows(1)
        names = [row.theirs for row in rows if row.kind in ("neuron", "silent")]
        unread = {"block.0.attn.attn_lif", "patch_embed.rpe_lif"}
        assert unread < set(names) and len(names) == 14
        return state | {f"{n}.w": np.float32(i) for i, n in enumerate(names)}

    path = renamed(path, tmp_path, learnt)
    model, variables = torch_weights.load(path, timesteps=2)
    assert model.neuron["learn_tau"]
    assert variables["params"]["block_0"]["mid_neuron"]["w"].shape == ()
    torch_weights.save(tmp_path / "back.safetensors", model, variables)
    assert set(keys_of(tmp_path / "back.safetensors")) == set(keys_of_npz(path))


def keys_of_npz(path):
    with np.load(path) as file:
        return file.files


def test_another_number_of_classes_makes_a_new_head_and_says_so(saved, caplog):
    path, _, variables = saved("spikingresformer_cifar")
    with caplog.at_level(logging.WARNING, "a2os2a_jax"):
        model, tree = torch_weights.load(path, num_classes=7)
    assert "head of 5 classes in the file, 7 asked for: initialised anew" in caplog.text
    head = tree["params"].pop("head")
    assert model.num_classes == 7 and list(head) == ["kernel"]
    assert head["kernel"].shape == (16, 7) and np.ptp(head["kernel"]) > 0
    del (rest := dict(variables["params"]))["head"]
    chex.assert_trees_all_equal(tree["params"], rest)
    _, again = torch_weights.load(path, num_classes=7)
    np.testing.assert_array_equal(again["params"]["head"]["kernel"], head["kernel"])
    _, other = torch_weights.load(path, num_classes=7, key=jax.random.key(1))
    assert (other["params"]["head"]["kernel"] != head["kernel"]).any()
    caplog.clear()
    torch_weights.load(path, num_classes=5)
    assert not caplog.text


@pytest.mark.parametrize("name", MODELS)
def test_a_file_without_a_head_gets_a_new_one_and_says_so(
    saved, tmp_path, caplog, name
):
    path, model, variables = saved(name)

    def beheaded(state):
        return {k: v for k, v in state.items() if not k.startswith(("head.", "classi"))}

    path = renamed(path, tmp_path, beheaded)
    told = MODELS[name][3] | dict(num_classes=5)
    with caplog.at_level(logging.WARNING, "a2os2a_jax"):
        got, tree = torch_weights.load(path, **told)
    assert "head of no classes in the file, 5 asked for: initialised" in caplog.text
    assert got == model
    head, there = tree["params"].pop("head"), dict(variables["params"])
    old = there.pop("head")
    assert jax.tree.map(jnp.shape, head) == jax.tree.map(jnp.shape, old)
    assert np.ptp(head["kernel"]) > 0
    chex.assert_trees_all_equal(tree["params"], there)
    del told["num_classes"]
    with pytest.raises(ValueError, match="model.npz: missing the head, .*num_classes="):
        torch_weights.load(path, **told)


def test_an_entry_of_a_file_is_loaded(saved, tmp_path):
    path, model, variables = saved("spikformer_cifar")
    tree = dict(mine=torch_format.behind("snn.", keys_of(path)), yours=keys_of(path))
    torch_format.save(tmp_path / "two.pth", tree)
    with pytest.raises(ValueError, match=r"mine \(dict\), yours \(dict\)"):
        torch_weights.load(tmp_path / "two.pth", **_HEADS)
    for entry in ("mine", "mine.snn", "yours"):
        got, tree = torch_weights.load(tmp_path / "two.pth", entry=entry, **_HEADS)
        assert got == model
        chex.assert_trees_all_equal(tree, variables)


# --- what is refused ------------------------------------------------------------------


def put(**more):
    return lambda state: state | {k.replace("__", "."): v for k, v in more.items()}


REFUSED = {  # model, change of the state dict, options, words of the message
    "no classes": ("columnar", None, dict(num_classes=0), ["num_classes 0", ">= 1"]),
    "classes in words": ("columnar", None, dict(num_classes="7"), ["num_classes '7'"]),
    "one axis": (
        "columnar",
        put(head__weight=np.ones(5)),
        {},
        ["head.weight has shape (5,)", "2 axes"],
    ),
    "one axis of a convolution": (
        "spikingresformer_cifar",
        put(layers__0__1__up__1__weight=np.ones(5)),
        {},
        ["layers.0.1.up.1.weight has shape (5,)", "4 axes"],
    ),
    "another family": (
        "qkformer_cifar",
        None,
        dict(family="spikformer"),
        ["spikformer has no module named 'patch_embed1.proj"],
    ),
    "a tensor of nobody's": (
        "spikingformer_cifar",
        put(block__0__attn__extra__weight=np.ones(3)),
        {},
        ["spikingformer has no module named 'block.0.attn.extra'"],
    ),
    "another size": (
        "spikformer_cifar",
        None,
        dict(variant="2-16"),
        ["missing block.1.attn.k_bn.bias (params/block_1/att", " and 32 more"],
    ),
    "another width": (
        "spikformer_cifar",
        None,
        dict(variant="1-32"),
        ["block.0.attn.k_bn.bias (params/block_0/att", "is (16,), expected (32,)"],
    ),
    "other heads": (
        "spikingresformer_cifar",
        None,
        dict(heads=(2, 4)),
        ["layers.0.0.firing_rate_", "(1,), expected (2,)"],
    ),
    "missing": (
        "qkformer_imagenet",
        lambda state: {k: v for k, v in state.items() if "stage2.1.tssa.k_bn" not in k},
        {},
        ["missing stage2.1.tssa.k_bn.bias (params/stage_2/block_1/attention/k_bn/"],
    ),
    "superfluous": (
        "spikingformer_cifar",
        put(block__1__attn__q_conv__bias=np.ones(16)),
        {},
        ["superfluous block.1.attn.q_conv.bias (params/block_1/attention/q_linear/"],
    ),
    "missing rates": (
        "spikingresformer_cifar",
        lambda state: {k: v for k, v in state.items() if "firing_rate_x" not in k},
        {},
        ["missing layers.0.0.firing_rate_x (batch_stats/stage_1/"],
    ),
    "a kernel of other axes": (
        "spikformer_cifar",
        put(patch_embed__proj_conv__weight=np.ones((2, 27))),
        {},
        ["patch_embed.proj_conv.weight has shape (2, 27), expected [out, in, h, w]"],
    ),
    "a map of 3x3": (
        "spikingformer_cifar",
        put(block__0__mlp__mlp1_conv__weight=np.ones((64, 16, 3, 3))),
        {},
        ["block.0.mlp.mlp1_conv.weight has shape (64, 16, 3, 3)"],
    ),
    "both stems": (
        "spikingformer_cifar",
        put(patch_embed__proj_conv__weight=np.ones((2, 3, 3, 3))),
        {},
        ["patch_embed.block0_conv.weight and patch_embed.proj_conv.weight"],
    ),
    "the other stem": (
        "qkformer_cifar",
        None,
        dict(stem="imagenet"),
        ["got stem 'imagenet', expected 'cifar', of which stage", " is"],
    ),
    "the other stem, by its kernel": (
        "spikingresformer_imagenet",
        None,
        dict(stem="cifar"),
        ["expected 'imagenet', of which prologue.0.weight of 7x7 is"],
    ),
    "an odd mlp": (
        "spikformer_cifar",
        put(block__0__mlp__fc1_linear__weight=np.ones((40, 16))),
        {},
        ["got 40 hidden channels", "multiple of 16"],
    ),
    "NaN": (
        "columnar",
        put(head__bias=np.full(5, np.nan)),
        {},
        ["head.bias has values that are NaN"],
    ),
}


def test_heads_that_do_not_divide_are_said_to_be_in_no_tensor(saved, tmp_path):
    model = models.build(
        "spikformer", "1-24", num_classes=5, image_size=32, heads=3, timesteps=2
    )
    path = tmp_path / "narrow.safetensors"
    torch_weights.save(path, model, filled(model))
    assert torch_weights.load(path, heads=3)[0].heads == 3
    narrow = models.build("qkformer", "3-48", num_classes=5, image_size=32, heads=3)
    path = tmp_path / "stages.safetensors"
    torch_weights.save(path, narrow, filled(narrow))
    path = renamed(path, tmp_path, lambda state: state)  # without our metadata
    with pytest.raises(ValueError, match="got 8, .* dim 12; .* give heads="):
        torch_weights.load(path)


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_does_not_fit_is_named(saved, tmp_path, wrong):
    name, change, options, words = REFUSED[wrong]
    path = saved(name)[0]
    path = renamed(path, tmp_path, change) if change else path
    with pytest.raises(ValueError) as error:
        torch_weights.load(path, **(MODELS[name][3] | options))
    message = str(error.value)
    assert "\n" not in message and len(message) < 700
    assert [word for word in words if word not in message] == [], message


def test_what_no_public_code_has_is_not_written(saved, tmp_path):
    path = tmp_path / "model.safetensors"
    _, model, variables = saved("spikformer_cifar")
    other = model.clone(attention=dict(model.attention, kind="xnor"))
    with pytest.raises(ValueError, match="got attention 'xnor', expected 'ssa'"):
        torch_weights.save(path, other, variables)
    with pytest.raises(ValueError, match="got a folded model"):
        torch_weights.save(path, model.clone(folded="counts"), variables)
    with pytest.raises(ValueError, match=r"head.bias .* is \(5,\), expected"):
        torch_weights.save(path, model.clone(num_classes=9), variables)
    with pytest.raises(ValueError, match="got Dense, expected a model"):
        torch_weights.save(path, __import__("flax").linen.Dense(3), variables)
    stats = variables["batch_stats"]
    bad = jax.tree.map(lambda x: x * np.nan, stats["stem"]["bn_0"])
    bad = variables | {"batch_stats": stats | {"stem": stats["stem"] | {"bn_0": bad}}}
    with pytest.raises(ValueError, match=r"patch_embed.proj_bn.running_mean .*NaN"):
        torch_weights.save(path, model, bad)
    tokens = models.build(
        "columnar", "1-16", num_classes=5, image_size=None, heads=2, stem="tokens"
    )
    with pytest.raises(ValueError, match="got the stem 'tokens'"):
        torch_weights.save(path, tokens, variables)
    for changes, words in {
        "readout query": "got readout 'query', expected 'mean'",
        "shortcut attention": "got shortcut 'attention', expected 'full'",
        "pool 0111": "got pool '0111', expected '0011'",
    }.items():
        key, value = changes.split()
        with pytest.raises(ValueError, match=words):
            torch_weights.save(path, model.clone(**{key: value}), variables)
    bare = dict(model.attention, bias=None)
    with pytest.raises(ValueError, match="superfluous|got bias False, expected True"):
        torch_weights.save(path, model.clone(attention=bare), variables)
    assert not path.exists()


def test_what_save_has_in_the_metadata_load_takes_from_there(tmp_path, caplog):
    how = dict(num_classes=5, image_size=16, heads=(2, 4, 1), timesteps=3)
    how |= dict(neuron=dict(tau=1.5), attention=dict(kind="ssa", scale=0.5))
    model = models.build("qkformer", "3-32", **how)
    path, variables = tmp_path / "own.safetensors", filled(model)
    with caplog.at_level(logging.WARNING, "a2os2a_jax"):
        torch_weights.save(path, model, variables)
    assert "'tau': 1.5" in caplog.text and "'scale': 0.5" in caplog.text
    again, tree = torch_weights.load(path)
    assert again == model
    chex.assert_trees_all_equal(tree, variables)
    told, _ = torch_weights.load(path, heads=1, neuron=dict(tau=2.0), timesteps=2)
    assert (told.heads, told.neuron["tau"], told.timesteps) == ((1, 1, 1), 2.0, 2)


def test_the_metadata_tells_what_no_tensor_does(saved):
    from safetensors import safe_open

    with safe_open(saved("spikformer_cifar")[0], "np") as file:
        about = file.metadata()
    assert about["family"] == "spikformer" and about["stem"] == "cifar"
    assert json.loads(about["heads"]) == 2 and json.loads(about["timesteps"]) == 2
