"""Stems, attentions and MLPs against public PyTorch code, a fixture of it a row."""

import json
import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from a2os2a_jax.models.qkformer import POOLS, Embed
from a2os2a_jax.modules import attention, neuron
from a2os2a_jax.modules.attention import SpikingSelfAttention
from a2os2a_jax.modules.block import MLP, Block
from a2os2a_jax.modules.stem import SPS
from tests.compiling import quick_options

RULE = neuron.DEFAULTS | dict(decay_input=True, surrogate="sigmoid")
HOW = dict(neuron=RULE, dtype=jnp.dtype("float64"))
MODES = ("train", "eval")


def fire(name):
    return neuron.make("binary", RULE, dtype=HOW["dtype"], name=name)


class Tokens(nn.Module):
    """What `inner` makes of images or tokens, with a neuron in front or behind.

    front, behind: their names; residual: the input is added.
    """

    inner: nn.Module
    front: str | None = None
    behind: str | None = None
    residual: bool = False

    @nn.compact
    def __call__(self, x, train):
        tokens = x.reshape(*x.shape[:2], -1, x.shape[-1])
        s = fire(self.front)(tokens) if self.front else tokens
        y = self.inner(s, train)
        y = fire(self.behind)(y) if self.behind else y
        return (y + tokens if self.residual else y).reshape(x.shape)


class Half(nn.Module):
    """What a whole `Block` of spike counts adds, with an MLP that never fires."""

    block: nn.Module

    @nn.compact
    def __call__(self, x, train):
        s = x.reshape(*x.shape[:2], -1, x.shape[-1])
        return (self.block(s, None, train)[0] - s).reshape(x.shape)


def _silent_mlp():
    """Its variables: fc2_bn is -100 everywhere."""
    tree = {}
    for name, inputs, outputs in (("fc1", 32, 128), ("fc2", 128, 32)):
        bias = np.full(outputs, -100.0 if name == "fc2" else 0.0)
        zeros, place = np.zeros(outputs), f"block/mlp/{name}"
        tree[f"params/{place}_linear/kernel"] = np.zeros((inputs, outputs))
        tree |= {f"params/{place}_linear/bias": zeros, f"params/{place}_bn/bias": bias}
        tree |= {f"params/{place}_bn/scale": zeros}
        tree |= {f"batch_stats/{place}_bn/{key}": zeros for key in ("mean", "var")}
    return tree


def qkformer_block(over_batch):
    how = dict(dim=32, heads=4, shortcut="full", mlp_ratio=4, side=4, **HOW)
    how |= dict(attention=attention.resolve("ssa"), residual="spikes")
    return Block(over_batch=over_batch, **how)


def attend(kind, **options):
    o = attention.resolve({"kind": kind} | options)
    return SpikingSelfAttention(32, 4, o, **HOW, side=4)


def embed(scale, first):
    return Embed(24, POOLS[scale][0 if first else 1], first, **HOW)


def names(*pairs):
    return [(re.compile(pattern), ours) for pattern, ours in pairs]


_QKV = (
    (r"([qkv]|proj)_(?:conv|linear)", r"inner/\1_linear"),
    (r"([qkv]|proj)_bn", r"inner/\1_bn"),
    (r"([qkv])_lif", r"inner/\1_neuron"),
    (r"attn_lif|talking_heads_lif", r"inner/attention_neuron"),
)
_MLP = (
    (r"(fc[12])_(?:conv|linear)", r"inner/\1_linear"),
    (r"(fc[12])_bn", r"inner/\1_bn"),
)
_SPS = (
    (r"proj_(conv|bn)", r"\1_0"),
    (r"proj_(conv|bn)([123])", r"\1_\2"),
    (r"(rpe_conv|rpe_bn)", r"\1"),
    (r"proj_lif", "neuron_0"),
    (r"proj_lif([12])", r"neuron_\1"),
)
_SPIKFORMER_SPS = names(*_SPS, (r"proj_lif3", "neuron_3"), (r"rpe_lif", "rpe_neuron"))
_EMBED = (
    (r"proj_res_(conv|bn)", r"res_\1"),
    (r"proj_res_lif", r"res_neuron"),
    (r"proj_(conv|bn)", r"\1_0"),
    (r"proj_lif", r"neuron_0"),
)
_INIT = names(
    *_EMBED, (r"proj(\d)_(conv|bn)", r"\2_\1"), (r"proj(\d)_lif", r"neuron_\1")
)
_STAGE = names(
    *_EMBED,
    (r"proj3_(conv|bn)", r"\1_0"),
    (r"proj4_(conv|bn)", r"\1_1"),
    (r"proj3_lif", "neuron_0"),
    (r"proj4_lif", "neuron_1"),
)
_BLOCK = names(
    (r"([qkv]|proj)_conv", r"block/attention/\1_linear"),
    (r"([qkv]|proj)_bn", r"block/attention/\1_bn"),
    (r"([qkv])_lif", r"block/attention/\1_neuron"),
    (r"attn_lif", r"block/attention/attention_neuron"),
    (r"proj_lif", r"block/mid_neuron"),
)
_SPIKES = names(*_QKV, (r"proj_lif", "behind"))


class Case(NamedTuple):
    """module: (x [B, T, ...], train) -> y. table: of names. unused: tensors that the
    public code never reads. more: variables that are not in the fixture."""

    module: nn.Module
    table: list
    unused: str = r"(?!)"
    more: dict = {}


CASES = {
    "spikformer_sps_cifar": Case(
        SPS(24, "0011", **HOW, form="spikes"), _SPIKFORMER_SPS
    ),
    "spikformer_sps_imagenet": Case(
        SPS(24, "1111", **HOW, form="spikes"), _SPIKFORMER_SPS
    ),
    "sdt_sps": Case(SPS(24, "0011", **HOW), names(*_SPS, (r"proj_lif3", "rpe_neuron"))),
    "spikingformer_tokenizer_cifar": Case(
        SPS(24, "0011", **HOW, form="tokenizer"),
        names(
            (r"block(\d)_(conv|bn)", r"\2_\1"),
            (r"block(\d)_lif", lambda m: f"neuron_{int(m[1]) - 1}"),
        ),
    ),
    "qkformer_embed_init_cifar": Case(embed("cifar", True), _INIT),
    "qkformer_embed_init_imagenet": Case(embed("imagenet", True), _INIT),
    "qkformer_embed_stage_cifar": Case(embed("cifar", False), _STAGE),
    "qkformer_embed_stage_imagenet": Case(embed("imagenet", False), _STAGE),
    "qkformer_qkta": Case(Tokens(attend("qk_token"), behind="behind"), _SPIKES),
    "qkformer_ssa": Case(  # its public code integrates over the batch
        Half(qkformer_block(True)), _BLOCK, more=_silent_mlp()
    ),
    "spikformer_ssa_cifar": Case(
        Tokens(attend("ssa", bias=True), behind="behind"), _SPIKES
    ),
    "spikformer_ssa_imagenet": Case(Tokens(attend("ssa"), behind="behind"), _SPIKES),
    "spikingformer_ssa": Case(
        Tokens(attend("ssa"), front="front"), names(*_QKV, (r"proj_lif", "front"))
    ),
    "sdt_sdsa": Case(
        Tokens(attend("sdsa"), front="front", residual=True),
        names(*_QKV, (r"shortcut_lif", "front")),
        unused=r"talking_heads\.weight",
    ),
    "sdt_sdsa_dvs": Case(
        Tokens(attend("sdsa", dilate=True), front="front", residual=True),
        names(*_QKV, (r"shortcut_lif", "front")),
        unused=r"talking_heads\.weight",
    ),
    "sdt_mlp": Case(
        Tokens(MLP(128, **HOW), front="front", residual=True),
        names(*_MLP, (r"fc1_lif", "front"), (r"fc2_lif", "inner/fc1_neuron")),
    ),
    "spikformer_mlp_cifar": Case(
        Tokens(MLP(128, **HOW), behind="behind"),
        names(*_MLP, (r"fc1_lif", "inner/fc1_neuron"), (r"fc2_lif", "behind")),
    ),
}


def part(data, prefix):
    return {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}


def path_of(module, table):
    for pattern, ours in table:
        if match := pattern.fullmatch(module):
            return ours(match) if callable(ours) else match.expand(ours)
    raise AssertionError(f"no name for {module}")


STATISTICS = {"running_mean": "mean", "running_var": "var"}


def place(key, ndim, table):
    """(collection, ..., leaf) of a key of the state dict."""
    module, _, leaf = key.rpartition(".")
    path = path_of(module, table).split("/")
    if leaf in STATISTICS:
        return ("batch_stats", *path, STATISTICS[leaf])
    if leaf == "weight":
        leaf = "kernel" if ndim > 1 else "scale"
    return ("params", *path, leaf)


def to_ours(x):
    x = np.asarray(x, np.float64)
    if x.ndim == 4 and x.shape[2:] != (1, 1):
        return x.transpose(2, 3, 1, 0)
    return x.reshape(x.shape[:2]).T if x.ndim > 1 else x


def tree(state_dict, case):
    kept = {
        k: v
        for k, v in state_dict.items()
        if "num_batches" not in k and not re.fullmatch(case.unused, k)
    }
    flat = {place(k, v.ndim, case.table): to_ours(v) for k, v in kept.items()}
    flat |= {tuple(k.split("/")): v for k, v in case.more.items()}
    return traverse_util.unflatten_dict(flat)


def ours_last(x, layout):
    """[T, B, C, H, W] or [T, B, N, C] as [B, T, H, W, C] or [B, T, N, C]."""
    x = np.asarray(x, np.float64).swapaxes(0, 1)
    return np.moveaxis(x, 2, -1) if "C,H,W" in layout or x.ndim == 5 else x


def theirs(x, want):
    """The same as theirs, [T, B, ...]; tokens as an image, or heads, where they are."""
    x = np.asarray(x).swapaxes(0, 1)
    if x.ndim == 4 and x.shape == want.shape:
        return x
    return np.moveaxis(x, -1, 2).reshape(want.shape)


def close(got, want, name=""):
    bound = 2e-7 if want.dtype == np.float32 else 1e-9
    atol = bound * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def computed(parity):
    """computed(name) -> (data, case, {mode: ((loss, (out, kept)), (grads, grad_x))})"""
    made = {}

    def get(name):
        if name not in made:
            made[name] = run(parity(f"prim_{name}_a"), CASES[name])
        return made[name]

    return get


def run(data, case):
    layout = json.loads(str(data["meta"]))["settings"]["layout"]
    with jax.enable_x64(True):
        variables = jax.tree.map(jnp.asarray, tree(part(data, "sd/"), case))
        x = jnp.asarray(ours_last(data["in/x"], layout))
        cotangent = np.asarray(data["in/cotangent"], np.float64)

        def forward(params, x, train):
            y, kept = case.module.apply(
                variables | {"params": params},
                x,
                train,
                mutable=["spikes", "batch_stats"],
            )
            return (y * ours_like(cotangent, y)).sum(), (y, kept)

        grad = jax.value_and_grad(forward, (0, 1), has_aux=True)
        compiled = jax.jit(grad, static_argnums=2, compiler_options=quick_options())
        out = {m: compiled(variables["params"], x, m == "train") for m in MODES}
        return data, case, jax.device_get(out)


def ours_like(cotangent, y):
    """Theirs [T, B, ...] in the layout of our y."""
    c = cotangent.swapaxes(0, 1)
    if c.ndim == 5:
        c = np.moveaxis(c, 2, -1)
    return jnp.asarray(c.reshape(y.shape))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_outputs_spikes_and_gradients_are_those_of_the_public_code(
    computed, name, mode
):
    data, case, results = computed(name)
    (loss, (out, kept)), (grads, grad_x) = results[mode]
    want = data[f"{mode}/out"]
    close(theirs(out, want), want)
    close(loss, data[f"{mode}/loss"])
    close(theirs(grad_x, data["in/x"]), data[f"{mode}/grad_x"])
    spikes = {
        path.removesuffix("/out"): s
        for path, (s,) in traverse_util.flatten_dict(kept["spikes"], sep="/").items()
    }
    recorded = part(data, f"{mode}/spk/")
    assert {path_of(n, case.table) for n in recorded} == {
        n for n in spikes if n != "block/out_neuron" and "/mlp/" not in n
    }
    for n, s in recorded.items():
        assert 0.02 < np.mean(s != 0) < 0.7
        ours = spikes[path_of(n, case.table)]
        np.testing.assert_array_equal(theirs(ours, s), s, n)
    zero = json.loads(str(data["meta"]))[mode]["grads_numerically_zero"]
    flat = traverse_util.flatten_dict(grads)
    compared = part(data, f"{mode}/grad/")
    if mode == "train":
        assert len(compared) == len([k for k in flat if "mlp" not in k])
    for key, want in compared.items():
        got = flat[place(key, want.ndim, case.table)[1:]]
        if f"grad/{key}" in zero:
            np.testing.assert_allclose(got, 0, atol=1e-12, err_msg=key)
        else:
            close(got, to_ours(want).astype(want.dtype), key)


@pytest.mark.parametrize("name", CASES)
def test_running_statistics_are_those_of_the_public_code(computed, name):
    data, case, results = computed(name)
    (_, (_, kept)), _ = results["train"]
    got = traverse_util.flatten_dict(kept["batch_stats"])
    got = {path: value for path, value in got.items() if "mlp" not in path}
    want = {k: v for k, v in part(data, "train/sd_after/").items() if "num_" not in k}
    assert len(want) == len(got)
    for key, value in want.items():
        close(got[place(key, value.ndim, case.table)[1:]], value, key)


def test_a_neuron_that_integrates_over_time_only_gives_each_sample_alone(parity, x64):
    """The right QKFormer: what the public code gives for batches of one."""
    data, case = parity("prim_qkformer_ssa_a"), CASES["qkformer_ssa"]
    variables = tree(part(data, "sd/"), case)
    x = jnp.asarray(ours_last(data["in/x"], "[T,B,C,H,W]"))

    @jax.jit
    def apply(x):
        return Half(qkformer_block(False)).apply(variables, x, False)

    want = data["eval_each_sample_alone/out"]
    close(theirs(apply(x), want), want)
    np.testing.assert_array_equal(apply(x[::-1]), apply(x)[::-1])
    assert np.abs(want - data["eval/out"]).max() == 1  # and it is another answer
