"""The whole model against a PyTorch reference, through the names of its state dict."""

import json
import re
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from a2os2a_jax import models
from a2os2a_jax.analysis import audit
from a2os2a_jax.interop import torch_weights
from tests.compiling import quick_options

OPTIONS = dict(image_size=32, heads=3, neuron=dict(decay_input=True))
MODES = ("train", "eval")


class Reference(NamedTuple):
    """options: of `load`. outputs: recorded ones of other modules than neurons, theirs
    and ours; `eval` has the first alone. spiking, statistics: how many there are.
    additions: are all its products additions? Spike counts need integer ones."""

    file: str
    options: dict
    outputs: dict
    spiking: int
    statistics: int
    additions: bool = True


REFERENCES = {
    "columnar": Reference(
        "a2os2a_cifar_tiny_a",
        OPTIONS,
        {
            "stem": "stem",
            "blocks.0.attn": "block_0/attention",
            "blocks.1.attn": "block_1/attention",
        },
        spiking=17,
        statistics=34,
    ),
    "spike_driven": Reference(
        "sdt_cifar_tiny_a",
        dict(image_size=32, heads=3),  # the neuron is the family's own
        {"patch_embed": "stem", "block.0": "block_0", "block.1": "block_1"},
        spiking=19,
        statistics=34,
    ),
    "spikformer": Reference(
        "spikformer_cifar_tiny_a",
        dict(heads=3),  # 32 pixels are usual, and its names tell the stem
        {
            "patch_embed": "stem",
            "block.0.attn": "block_0/mid_neuron",
            "block.0": "block_0",
            "block.1.attn": "block_1/mid_neuron",
            "block.1": "block_1",
        },
        spiking=19,
        statistics=34,
        additions=False,
    ),
}


def part(data, prefix):
    return {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}


def close(got, want, name=""):
    """To 1e-9 of the largest value, or as far as float32 has kept the reference."""
    bound = 2e-7 if want.dtype == np.float32 else 1e-9
    atol = bound * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=name)


def their_layout(x, want):
    """[B, T, N, D] or [B, T, H, W, C] as theirs: [T, B, N, D], or channels first, with
    the image's two axes or heads and what they have."""
    x = np.asarray(x).swapaxes(0, 1)
    if x.shape == want.shape:
        return x
    return np.moveaxis(x, -1, 2).reshape(want.shape)


@pytest.fixture(scope="module")
def state_dict(parity):
    return part(parity("a2os2a_cifar_tiny_a"), "sd/")


@pytest.fixture(scope="module")
def npz(state_dict, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.npz"
    np.savez(path, **state_dict)
    return path


@pytest.fixture(scope="module", params=REFERENCES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def data(family, parity):
    return parity(REFERENCES[family].file)


@pytest.fixture(scope="module")
def ours(family, data, tmp_path_factory):
    """{mode: ((loss, (logits, kept)), (gradients, grad_x))}, variables and model."""
    path = tmp_path_factory.mktemp("weights") / "model.npz"
    np.savez(path, **part(data, "sd/"))
    how = REFERENCES[family]
    with jax.enable_x64(True):
        model, variables = torch_weights.load(path, dtype="float64", **how.options)
        x = jnp.asarray(data["in/x"], jnp.float64).transpose(0, 2, 3, 1)
        labels = jnp.asarray(data["in/target"])

        def run(params, x, train):
            logits, kept = model.apply(
                variables | {"params": params},
                x,
                train=train,
                mutable=["spikes", "batch_stats", "intermediates"],
                capture_intermediates=lambda module, method: (
                    method == "__call__"
                    and "/".join(module.path) in how.outputs.values()
                ),
            )
            scores = jnp.take_along_axis(
                jax.nn.log_softmax(logits), labels[:, None], axis=1
            )
            return -scores.mean(), (logits, kept)

        grad = jax.value_and_grad(run, (0, 1), has_aux=True)
        compiled = jax.jit(grad, static_argnums=2, compiler_options=quick_options())
        results = {m: compiled(variables["params"], x, m == "train") for m in MODES}
        return jax.device_get(results), variables, model


@pytest.mark.parametrize("mode", MODES)
def test_logits_and_loss(data, ours, mode):
    (loss, (logits, _)), _ = ours[0][mode]
    assert np.ptp(data[f"{mode}/out"], axis=0).max() > 1e-2
    close(logits, data[f"{mode}/out"])
    close(loss, data[f"{mode}/loss"])


@pytest.mark.parametrize("mode", MODES)
def test_every_spike(family, data, ours, mode):
    (_, (_, kept)), _ = ours[0][mode]
    got = traverse_util.flatten_dict(kept["spikes"], sep="/")
    want = part(data, f"{mode}/spk/")
    places = {n: torch_weights.module_path(n, family) + "/out" for n in want}
    assert sorted(places.values()) == sorted(got)
    assert len(got) == REFERENCES[family].spiking
    for name, s in want.items():
        assert 0.02 < np.mean(s != 0) < 0.7
        np.testing.assert_array_equal(their_layout(got[places[name]][0], s), s, name)


@pytest.mark.parametrize("mode", MODES)
def test_recorded_outputs_of_modules(family, data, ours, mode):
    outputs, ((_, (_, kept)), _) = REFERENCES[family].outputs, ours[0][mode]
    got = traverse_util.flatten_dict(kept["intermediates"], sep="/")
    recorded = [name for name in outputs if f"{mode}/act/{name}" in data]
    assert recorded == list(outputs)[: None if mode == "train" else 1]
    for name in recorded:
        (y,) = got[f"{outputs[name]}/__call__"]
        want = data[f"{mode}/act/{name}"]
        if isinstance(y, tuple):  # a block gives spikes, and a membrane if it has one
            y = y[0] if y[1] is None else y[1]
        close(their_layout(y, want), want, name)


@pytest.mark.parametrize("mode", MODES)
def test_every_gradient(family, data, ours, mode):
    _, (grads, grad_x) = ours[0][mode]
    close(grad_x.transpose(0, 3, 1, 2), data[f"{mode}/grad_x"])
    want = part(data, f"{mode}/grad/")
    got = torch_weights.from_variables({"params": grads}, want, family)
    assert set(got) == set(want)
    if mode == "train":
        assert len(want) == len(jax.tree.leaves(grads))
    zero = json.loads(str(data["meta"]))[mode]["grads_numerically_zero"]
    for name, value in want.items():
        if f"grad/{name}" in zero:
            np.testing.assert_allclose(got[name], 0, atol=1e-12, err_msg=name)
        else:
            close(got[name], value, name)


def test_running_statistics(family, data, ours):
    results, variables, _ = ours
    want = part(data, "train/sd_after/")
    (_, (_, kept)), _ = results["train"]
    got = torch_weights.from_variables(
        {"batch_stats": kept["batch_stats"]}, want, family
    )
    assert len(got) == len(jax.tree.leaves(kept["batch_stats"]))
    assert len(got) == REFERENCES[family].statistics
    for name, value in got.items():
        close(value, want[name], name)
    (_, (_, kept)), _ = results["eval"]
    jax.tree.map(
        np.testing.assert_array_equal, kept["batch_stats"], variables["batch_stats"]
    )


def test_folded_it_gives_the_reference_by_additions(family, data, ours, x64):
    _, variables, model = ours
    model, params = models.fold(model, variables)
    x = jnp.asarray(data["in/x"], jnp.float64).transpose(0, 2, 3, 1)
    run = jax.jit(model.apply, compiler_options=quick_options())
    np.testing.assert_allclose(run(params, x), data["eval/out"], rtol=0, atol=1e-10)
    report = audit.certify(model.apply, params, x, allow=("input",))
    assert report.addition_only == REFERENCES[family].additions, str(report)
    assert [o.path for o in report.products if o.allowed] == ["stem/conv_0"]
    kinds = {operation.kind for operation in report.refused}
    assert kinds == (set() if report.addition_only else {"integer product"})


# --- reading and writing --------------------------------------------------------------


def test_depth_and_width_are_read_from_the_tensors(npz):
    model, variables = torch_weights.load(npz, **OPTIONS)
    assert (model.depth, model.dim, model.num_classes) == (2, 48, 10)
    assert (model.in_channels, model.heads, model.timesteps) == (3, 3, 4)
    assert model.neuron["decay_input"] and model.dtype == jnp.float32
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}


def test_options_of_the_load(npz):
    how = OPTIONS | dict(timesteps=2, shortcut="attention")
    model, variables = torch_weights.load(
        npz, "columnar", surrogate="sigmoid(4)", dtype="bfloat16", **how
    )
    assert model.neuron == dict(OPTIONS["neuron"], surrogate="sigmoid(4)") | {
        "rule": "paper",
        "tau": 2.0,
        "v_th": 1.0,
        "v_reset": 0.0,
        "soft_reset": False,
        "detach_reset": True,
        "learn_tau": False,
    }
    assert (model.timesteps, model.shortcut) == (2, "attention")
    assert model.dtype == jnp.bfloat16
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}
    paper, _ = torch_weights.load(npz, image_size=32, heads=3, surrogate="triangle")
    assert not paper.neuron["decay_input"] and paper.neuron["surrogate"] == "triangle"


def test_there_and_back_changes_nothing(family, data):
    state_dict = part(data, "sd/")
    variables = torch_weights.to_variables(state_dict, family)
    assert set(variables) == {"params", "batch_stats"}
    back = torch_weights.from_variables(variables, state_dict, family)
    pattern = r"talking_heads|norm[12]\."
    unused = {name for name in state_dict if re.search(pattern, name)}
    assert len(unused) == {"spike_driven": 2, "spikformer": 8}.get(family, 0)
    counters = {name for name in state_dict if name.endswith("num_batches_tracked")}
    assert set(back) == set(state_dict) - counters - unused and len(counters) == 17
    for name, value in back.items():
        np.testing.assert_array_equal(value, state_dict[name], name)
    again = torch_weights.to_variables(back, family)
    chex.assert_trees_all_equal(again, variables)


def test_the_spike_driven_family_is_recognised_with_its_own_rule(parity, tmp_path):
    state_dict = part(parity("sdt_cifar_tiny_a"), "sd/")
    np.savez(tmp_path / "model.npz", **state_dict)
    how = dict(image_size=32, heads=3)
    model, variables = torch_weights.load(tmp_path / "model.npz", **how)
    same, _ = torch_weights.load(tmp_path / "model.npz", "spike_driven", **how)
    assert model == same and (model.depth, model.dim, model.num_classes) == (2, 48, 10)
    assert (model.attention["kind"], model.readout) == ("sdsa", "membrane")
    assert model.neuron["decay_input"] and model.neuron["surrogate"] == "sigmoid"
    kernel = variables["params"]["block_1"]["mlp"]["fc1_linear"]["kernel"]
    conv = state_dict["block.1.mlp.fc1_conv.weight"]
    assert kernel.shape == (48, 192) and kernel[3, 100] == conv[100, 3, 0, 0]
    with pytest.raises(ValueError, match="no module named 'block.0.attn.talking_head"):
        torch_weights.to_variables(
            {"block.0.attn.talking_heads.bias": np.zeros(3)}, "spike_driven"
        )


def test_kernels_are_transposed_as_their_layers_want(state_dict):
    params = torch_weights.to_variables(state_dict)["params"]
    conv, kernel = state_dict["stem.conv.1.weight"], params["stem"]["conv_1"]["kernel"]
    assert kernel.shape == (3, 3, 6, 12)
    assert kernel[0, 2, 5, 7] == conv[7, 5, 0, 2]
    linear = state_dict["blocks.1.mlp.fc1_linear.weight"]
    kernel = params["block_1"]["mlp"]["fc1_linear"]["kernel"]
    assert kernel.shape == (48, 192) and kernel[3, 100] == linear[100, 3]


# --- what is refused ------------------------------------------------------------------


def without(*names):
    return lambda sd: {k: v for k, v in sd.items() if k not in names}


def added(name, shape=(48,)):
    return lambda sd: sd | {name: np.zeros(shape, np.float32)}


REFUSED = {  # change of the state dict, other options, words of the message
    "missing": (
        without("blocks.1.attn.k_bn.bias"),
        {},
        ["missing", "params/block_1/attention/k_bn/bias"],
    ),
    "missing statistics": (
        without("stem.rpe_bn.running_var"),
        {},
        ["missing", "batch_stats/stem/rpe_bn/var"],
    ),
    "missing head": (without("head.weight"), {}, ["missing", "head.weight"]),
    "missing stem": (
        without("stem.conv.0.weight"),
        {},
        ["missing", "stem.conv.0.weight"],
    ),
    "superfluous": (
        added("blocks.0.attn.q_linear.bias"),
        {},
        ["superfluous", "params/block_0/attention/q_linear/bias"],
    ),
    "a block between missing": (
        added("blocks.3.mlp.fc1_bn.bias"),
        {},
        ["missing", "block_2/"],
    ),
    "unknown module": (
        added("blocks.0.attn.talking_heads.weight"),
        dict(family="columnar"),
        ["columnar", "blocks.0.attn.talking_heads"],
    ),
    "unknown leaf": (
        added("blocks.0.attn.q_bn.gamma"),
        dict(family="columnar"),
        ["blocks.0.attn.q_bn.gamma", "weight, bias"],
    ),
    "unknown keys": (
        lambda sd: {f"{k}.mine": v for k, v in sd.items()},
        {},
        ["no family", "columnar", "stem.conv.0.weight.mine", "module., ", "entry="],
    ),
    "wrong shape": (
        added("blocks.0.attn.q_linear.weight", (48, 40)),
        {},
        ["block_0/attention/q_linear/kernel", "(40, 48)", "(48, 48)"],
    ),
    "wrong mlp": ({}, dict(mlp_ratio=2), ["mlp/fc1", "192", "96"]),
    "unknown family": ({}, dict(family="resnet"), ["'resnet'", "columnar"]),
    "heads": ({}, dict(heads=5), ["heads", "got 5", "48"]),
    "image size": ({}, dict(image_size=30), ["image_size", "30"]),
    "surrogate": ({}, dict(surrogate="erf"), ["surrogate", "'erf'"]),
    "unknown option": ({}, dict(head=3), ["got the options head", "heads"]),
    "float64 without it": (
        {},
        dict(dtype="float64"),
        ["dtype float64", "jax_enable_x64"],
    ),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_does_not_fit_is_named(state_dict, tmp_path, wrong):
    change, options, words = REFUSED[wrong]
    np.savez(tmp_path / "model.npz", **(change(state_dict) if change else state_dict))
    with pytest.raises(ValueError) as error:
        torch_weights.load(tmp_path / "model.npz", **(OPTIONS | options))
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_from_variables_misses_what_is_not_there(state_dict):
    variables = torch_weights.to_variables(state_dict)
    del variables["params"]["head"]
    with pytest.raises(ValueError, match="params/head/"):
        torch_weights.from_variables(variables, state_dict)


@pytest.mark.parametrize("name", ["blocks.0", "stem.conv", "blocks.x.mlp.fc1_bn", ""])
def test_module_path_knows_its_modules_only(name):
    assert torch_weights.module_path("blocks.0.attn.q_lif", "columnar") == (
        "block_0/attention/q_neuron"
    )
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        torch_weights.module_path(name, "columnar")
