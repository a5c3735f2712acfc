"""What the families' public PyTorch code calls its modules, and what we call them.

One function a family lists its modules, as rows. Everything else follows from a row:
the keys of its tensors and where they are with us (`place`), how their axes lie
(`to_ours`, `to_torch`), which neuron a recorded spike is of. A family whose code
differs between small and large images has rows that only one of the two stems has; they
tell which one a file is of.
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

MOST_BLOCKS = 100  # numbers in names beyond it are of no model


class Row(NamedTuple):
    """theirs: name of a module in the state dict. ours: its path, "" where the public
    forward never reads it. kind: a key of LEAVES. stem: "cifar" or "imagenet" where
    the name is of that code alone."""

    theirs: str
    ours: str
    kind: str
    stem: str | None = None


# kind -> tensors of such a module: (leaf in the state dict, our collection, our leaf)
_WEIGHTS = (("weight", "params", "kernel"), ("bias", "params", "bias"))
LEAVES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "linear": _WEIGHTS,  # [out, in]
    "conv1d": _WEIGHTS,  # [out, in, 1], a linear map
    "pointwise": _WEIGHTS,  # [out, in, 1, 1], a linear map
    "conv": _WEIGHTS,  # [out, in, h, w]
    "norm": (
        ("weight", "params", "scale"),
        ("bias", "params", "bias"),
        ("running_mean", "batch_stats", "mean"),
        ("running_var", "batch_stats", "var"),
    ),
    "neuron": (("w", "params", "w"),),  # only where it learns its tau
    "rates": (  # [1, 1, heads, 1, 1]
        ("firing_rate_x", "batch_stats", "x_rate"),
        ("firing_rate_attn", "batch_stats", "a_rate"),
    ),
    # never read
    "layer_norm": (("weight", "", ""), ("bias", "", "")),
    "heads": (("weight", "", ""),),  # [heads, heads, 1]
    "silent": (("w", "", ""),),
}
NDIM = {"linear": 2, "conv1d": 3, "pointwise": 4, "conv": 4}
COUNTER = "num_batches_tracked"  # of a norm; nothing here needs it


class Family(NamedTuple):
    """rows: of a model of so many blocks. source: the public code.
    ignored: further keys of variants of that code, which its forward never reads.
    """

    rows: Callable[[int], Iterator[Row]]
    source: str
    ignored: tuple[str, ...] = ()


def _columnar(blocks: int) -> Iterator[Row]:
    for i in range(4):
        yield Row(f"stem.conv.{i}", f"stem/conv_{i}", "conv")
        yield Row(f"stem.bn.{i}", f"stem/bn_{i}", "norm")
        yield Row(f"stem.lif.{i}", f"stem/neuron_{i}", "neuron")
    yield Row("stem.rpe_conv", "stem/rpe_conv", "conv")
    yield Row("stem.rpe_bn", "stem/rpe_bn", "norm")
    yield Row("stem.rpe_lif", "stem/rpe_neuron", "neuron")
    yield Row("stem_lif", "stem_neuron", "neuron")
    for i in range(blocks):
        theirs, ours = f"blocks.{i}", f"block_{i}"
        yield from _attention(f"{theirs}.attn", ours, "linear", "linear")
        yield Row(
            f"{theirs}.attn.attn_lif", f"{ours}/attention/attention_neuron", "neuron"
        )
        yield Row(f"{theirs}.attn_out_lif", f"{ours}/mid_neuron", "neuron")
        yield from _mlp(f"{theirs}.mlp.fc", ours, "linear", "linear")
        yield Row(f"{theirs}.mlp.fc1_lif", f"{ours}/mlp/fc1_neuron", "neuron")
        yield Row(f"{theirs}.out_lif", f"{ours}/out_neuron", "neuron")
    yield Row("head", "head", "linear")


def _spike_driven(blocks: int) -> Iterator[Row]:
    yield from _sps()
    yield Row("patch_embed.proj_lif3", "stem/rpe_neuron", "neuron")
    yield Row("patch_embed.rpe_lif", "", "silent")
    for i in range(blocks):
        theirs, ours = f"block.{i}", f"block_{i}"
        yield Row(f"{theirs}.attn.shortcut_lif", _before(i), "neuron")
        yield from _attention(f"{theirs}.attn", ours, "conv", "pointwise")
        yield Row(f"{theirs}.attn.talking_heads", "", "heads")
        yield Row(
            f"{theirs}.attn.talking_heads_lif",
            f"{ours}/attention/attention_neuron",
            "neuron",
        )
        yield Row(f"{theirs}.attn.attn_lif", "", "silent")
        yield Row(f"{theirs}.mlp.fc1_lif", f"{ours}/mid_neuron", "neuron")
        yield from _mlp(f"{theirs}.mlp.fc", ours, "conv", "pointwise")
        yield Row(f"{theirs}.mlp.fc2_lif", f"{ours}/mlp/fc1_neuron", "neuron")
    yield Row("head_lif", "head_neuron", "neuron")
    yield Row("head", "head", "linear")


def _spikformer(blocks: int) -> Iterator[Row]:
    yield from _sps()
    yield Row("patch_embed.proj_lif3", "stem/neuron_3", "neuron")
    yield Row("patch_embed.rpe_lif", "stem/rpe_neuron", "neuron")
    for i in range(blocks):
        theirs, ours = f"block.{i}", f"block_{i}"
        yield Row(f"{theirs}.norm1", "", "layer_norm")
        yield from _attention(f"{theirs}.attn", ours, "linear", "linear", "cifar")
        yield from _attention(f"{theirs}.attn", ours, "conv", "conv1d", "imagenet")
        yield Row(
            f"{theirs}.attn.attn_lif", f"{ours}/attention/attention_neuron", "neuron"
        )
        yield Row(f"{theirs}.attn.proj_lif", f"{ours}/mid_neuron", "neuron")
        yield Row(f"{theirs}.norm2", "", "layer_norm")
        yield from _mlp(f"{theirs}.mlp.fc", ours, "linear", "linear", "cifar")
        yield from _mlp(f"{theirs}.mlp.fc", ours, "conv", "pointwise", "imagenet")
        yield Row(f"{theirs}.mlp.fc1_lif", f"{ours}/mlp/fc1_neuron", "neuron")
        yield Row(f"{theirs}.mlp.fc2_lif", f"{ours}/out_neuron", "neuron")
    yield Row("head", "head", "linear")


def _spikingformer(blocks: int) -> Iterator[Row]:
    for i in range(5):
        for stem, theirs in (("cifar", f"block{i}"), ("imagenet", f"proj{i or ''}")):
            theirs = f"patch_embed.{theirs}"
            yield Row(f"{theirs}_conv", f"stem/conv_{i}", "conv", stem)
            yield Row(f"{theirs}_bn", f"stem/bn_{i}", "norm", stem)
            if i:
                yield Row(f"{theirs}_lif", f"stem/neuron_{i - 1}", "neuron", stem)
    for i in range(blocks):
        theirs, ours = f"block.{i}", f"block_{i}"
        yield Row(f"{theirs}.norm1", "", "layer_norm")
        yield Row(f"{theirs}.attn.proj_lif", _before(i), "neuron")
        yield from _attention(f"{theirs}.attn", ours, "conv", "conv1d")
        yield Row(
            f"{theirs}.attn.attn_lif", f"{ours}/attention/attention_neuron", "neuron"
        )
        yield Row(f"{theirs}.norm2", "", "layer_norm")
        yield Row(f"{theirs}.mlp.mlp1_lif", f"{ours}/mid_neuron", "neuron")
        yield from _mlp(f"{theirs}.mlp.mlp", ours, "conv", "pointwise")
        yield Row(f"{theirs}.mlp.mlp2_lif", f"{ours}/mlp/fc1_neuron", "neuron")
    yield Row("head", "head", "linear")


def _qkformer(blocks: int) -> Iterator[Row]:
    convolutions = {1: ("proj", "proj1", "proj2"), 2: ("proj3", "proj4")}
    for k in (1, 2, 3):
        for j, name in enumerate(convolutions[min(k, 2)]):
            theirs, ours = f"patch_embed{k}.{name}", f"stage_{k}/embed"
            stem = "imagenet" if name == "proj2" else None
            yield Row(f"{theirs}_conv", f"{ours}/conv_{j}", "conv", stem)
            yield Row(f"{theirs}_bn", f"{ours}/bn_{j}", "norm", stem)
            yield Row(f"{theirs}_lif", f"{ours}/neuron_{j}", "neuron", stem)
        theirs, ours = f"patch_embed{k}.proj_res", f"stage_{k}/embed/res"
        yield Row(f"{theirs}_conv", f"{ours}_conv", "pointwise")
        yield Row(f"{theirs}_bn", f"{ours}_bn", "norm")
        yield Row(f"{theirs}_lif", f"{ours}_neuron", "neuron")
        for i in range(blocks):
            theirs, ours = f"stage{k}.{i}", f"stage_{k}/block_{i}"
            if k < 3:
                yield from _qk_attention(f"{theirs}.tssa", ours)
            else:
                yield from _qk_attention(f"{theirs}.ssa", ours, "cifar")
                yield from _qk_attention(f"{theirs}.attn", ours, "imagenet")
            for stem, name in (("cifar", "mlp"), ("imagenet", "fc")):
                yield from _mlp(f"{theirs}.mlp.{name}", ours, "conv", "pointwise", stem)
                neurons = ("mlp/fc1_neuron", "out_neuron")
                for j, neuron in enumerate(neurons, 1):
                    name_j = f"{theirs}.mlp.{name}{j}_lif"
                    yield Row(name_j, f"{ours}/{neuron}", "neuron", stem)
    yield Row("head", "head", "linear")


def _qk_attention(theirs: str, ours: str, stem: str | None = None) -> Iterator[Row]:
    letters = "qk" if stem is None else "qkv"
    yield from _attention(theirs, ours, "conv", "conv1d", stem, letters)
    attention_neuron = f"{ours}/attention/attention_neuron"
    yield Row(f"{theirs}.attn_lif", attention_neuron, "neuron", stem)
    yield Row(f"{theirs}.proj_lif", f"{ours}/mid_neuron", "neuron", stem)


def _spikingresformer(blocks: int) -> Iterator[Row]:
    yield Row("prologue.0", "stem/conv", "conv")
    yield Row("prologue.1.bn", "stem/bn", "norm")
    for k in range(blocks):  # a stage has one block at least
        stage = f"stage_{k + 1}"
        if k:
            yield Row(f"layers.{k}.0.activation", f"{stage}/down/neuron", "neuron")
            yield Row(f"layers.{k}.0.conv", f"{stage}/down/conv", "conv")
            yield Row(f"layers.{k}.0.norm.bn", f"{stage}/down/bn", "norm")
        for i in range(blocks):
            first = 2 * i + (k > 0)  # behind what halves the map
            theirs, ours = f"layers.{k}.{first}", f"{stage}/block_{i}"
            yield Row(f"{theirs}.activation_in", f"{ours}/in_neuron", "neuron")
            yield from _dssa(theirs, f"{ours}/attention")
            theirs = f"layers.{k}.{first + 1}"
            yield Row(f"{theirs}.up.0", f"{ours}/mid_neuron", "neuron")
            yield from _gwffn(theirs, f"{ours}/mlp")
    yield Row("classifier", "head", "linear")


def _dssa(theirs: str, ours: str) -> Iterator[Row]:
    yield Row(theirs, ours, "rates")
    yield Row(f"{theirs}.W", f"{ours}/y_conv", "conv")
    yield Row(f"{theirs}.norm.bn", f"{ours}/y_bn", "norm")
    yield Row(f"{theirs}.activation_attn", f"{ours}/attention_neuron", "neuron")
    yield Row(f"{theirs}.activation_out", f"{ours}/out_neuron", "neuron")
    yield Row(f"{theirs}.Wproj", f"{ours}/proj_linear", "pointwise")
    yield Row(f"{theirs}.norm_proj.bn", f"{ours}/proj_bn", "norm")


def _gwffn(theirs: str, ours: str) -> Iterator[Row]:
    yield Row(f"{theirs}.up.1", f"{ours}/up_linear", "pointwise")
    yield Row(f"{theirs}.up.2.bn", f"{ours}/up_bn", "norm")
    yield Row(f"{theirs}.conv.0.0", f"{ours}/group_neuron", "neuron")
    yield Row(f"{theirs}.conv.0.1", f"{ours}/group_conv", "conv")
    yield Row(f"{theirs}.conv.0.2.bn", f"{ours}/group_bn", "norm")
    yield Row(f"{theirs}.down.0", f"{ours}/down_neuron", "neuron")
    yield Row(f"{theirs}.down.1", f"{ours}/down_linear", "pointwise")
    yield Row(f"{theirs}.down.2.bn", f"{ours}/down_bn", "norm")


def _sps() -> Iterator[Row]:
    """Stem of Spikformer and the Spike-Driven Transformer, but for its last neurons."""
    for i in range(4):
        yield Row(f"patch_embed.proj_conv{i or ''}", f"stem/conv_{i}", "conv")
        yield Row(f"patch_embed.proj_bn{i or ''}", f"stem/bn_{i}", "norm")
        if i < 3:
            yield Row(f"patch_embed.proj_lif{i or ''}", f"stem/neuron_{i}", "neuron")
    yield Row("patch_embed.rpe_conv", "stem/rpe_conv", "conv")
    yield Row("patch_embed.rpe_bn", "stem/rpe_bn", "norm")


def _attention(theirs, ours, name, kind, stem=None, letters="qkv") -> Iterator[Row]:
    """The maps to q, k and v and back; name: what they are called by, "q_linear"."""
    for part in (*letters, "proj"):
        here = f"{ours}/attention/{part}"
        yield Row(f"{theirs}.{part}_{name}", f"{here}_linear", kind, stem)
        yield Row(f"{theirs}.{part}_bn", f"{here}_bn", "norm", stem)
        if part != "proj":
            yield Row(f"{theirs}.{part}_lif", f"{here}_neuron", "neuron", stem)


def _mlp(theirs, ours, name, kind, stem=None) -> Iterator[Row]:
    for j in (1, 2):
        yield Row(f"{theirs}{j}_{name}", f"{ours}/mlp/fc{j}_linear", kind, stem)
        yield Row(f"{theirs}{j}_bn", f"{ours}/mlp/fc{j}_bn", "norm", stem)


def _before(i: int) -> str:
    """The neuron in front of a block is the last one of the block before it."""
    return f"block_{i - 1}/out_neuron" if i else "stem_neuron"


FAMILIES = {
    "columnar": Family(_columnar, "this package's own reference"),
    "spike_driven": Family(
        _spike_driven, "BICLab/Spike-Driven-Transformer, commit 3faa822"
    ),
    "spikformer": Family(
        _spikformer,
        "ZK-Zhou/spikformer, commit 6212689",
        ignored=("pos_embed", "norm.weight", "norm.bias"),  # of its event model
    ),
    "spikingformer": Family(
        _spikingformer, "zhouchenlin2096/Spikingformer, commit 4378623"
    ),
    "qkformer": Family(_qkformer, "zhouchenlin2096/QKFormer, commit c2a00e8"),
    "spikingresformer": Family(
        _spikingresformer, "xyshi2000/SpikingResformer, commit 3f75127"
    ),
}


# --- looking up -----------------------------------------------------------------------


def blocks_named(names) -> int:
    """How many blocks a table needs to have all these names in it."""
    numbers = (
        int(n) for name in names for n in re.findall(r"(?:^|\.)(\d{1,9})(?=\.|$)", name)
    )
    return min(max(numbers, default=0) + 1, MOST_BLOCKS)


@functools.lru_cache(maxsize=32)
def table(family: str, blocks: int) -> dict[str, tuple[Row, ...]]:
    """name in the state dict -> its rows; more than one where both stems have it."""
    found: dict[str, tuple[Row, ...]] = {}
    for row in FAMILIES[family].rows(blocks):
        found[row.theirs] = (*found.get(row.theirs, ()), row)
    return found


def rows_of(key: str, family: str, blocks: int) -> tuple[Row, ...]:
    """Rows of the module whose tensor `key` is, none if the family has no such."""
    return table(family, blocks).get(key.rpartition(".")[0], ())


def place(key: str, row: Row) -> tuple[str, ...] | None:
    """(collection, module, ..., leaf) of a tensor; () if nobody reads it, None if such
    a module has none of that name."""
    leaf = key.rpartition(".")[2]
    if row.kind == "norm" and leaf == COUNTER:
        return ()
    for theirs, collection, ours in LEAVES[row.kind]:
        if theirs == leaf:
            return (collection, *row.ours.split("/"), ours) if row.ours else ()
    return None


def to_ours(array: np.ndarray, row: Row) -> np.ndarray:
    """Kernels as [in, out] or [h, w, in, out], rates as [heads]; others as they are.

    Raises:
      ValueError: axes that such a module does not have.
    """
    if row.kind == "rates":
        return array.reshape(-1)
    if array.ndim < 2:
        return array
    if row.kind == "conv":
        if array.ndim != 4:
            raise ValueError(f"shape {array.shape}, expected [out, in, h, w]")
        return array.transpose(2, 3, 1, 0)
    if row.kind in NDIM:
        if array.shape[2:] != (1,) * (array.ndim - 2):
            raise ValueError(f"shape {array.shape}, expected [out, in] and ones")
        return array.reshape(array.shape[:2]).T
    return array


def to_torch(array: np.ndarray, row: Row) -> np.ndarray:
    """The inverse, with the axes that the public code has."""
    if row.kind == "rates":
        return array.reshape(1, 1, -1, 1, 1)
    if row.kind == "conv" and array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if row.kind in NDIM and array.ndim == 2:
        return array.T.reshape(*array.T.shape, *(1,) * (NDIM[row.kind] - 2))
    return array
