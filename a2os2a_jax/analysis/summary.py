"""The layers of a model as a table: shapes, parameters, and which of them fire.

Found by tracing shapes alone: no array is made, whatever the size of the model. A row
stands for a module that owns parameters or that spikes, in the order in which the data
pass them.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import prod
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.norm import BatchNorm

_BATCH = 1009  # a length that no other axis has by chance; it is shown as B
_AXES = {5: "[B, T, H, W, C]", 4: "[B, T, N, D]", 3: "[B, T, D]", 2: "[B, classes]"}
_REPEATED = re.compile(r"((?:.*/)?\w+_)(\d+)/(.+)")  # block_, 0, mlp/fc1_linear


class Layer(NamedTuple):
    """One row.

    name: module path, "block_0/mlp/fc1_linear". kind: "conv 3x3", "linear", "BN", "LIF"
    and other neurons. shape: of the output, with "B" for the batch; () if the layer was
    not called by itself. params: {"kernel": (64, 256)}. fires: alphabet of its spikes,
    "{-1, 0, 1}", or "". frozen: those of `params` that are not trained.
    """

    name: str
    kind: str
    shape: tuple[int | str, ...]
    params: Mapping[str, tuple[int, ...]]
    fires: str = ""
    frozen: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Numbers in its parameters."""
        return sum(map(prod, self.params.values()))

    @property
    def frozen_count(self) -> int:
        return sum(prod(self.params[name]) for name in self.frozen)

    @property
    def neurons(self) -> int:
        """Of one example, at one time step; 0 where nothing fires."""
        return prod(self.shape[2:]) if self.fires else 0


def layers(
    model: nn.Module, shape: Sequence[int], frozen: Sequence[str] = ()
) -> list[Layer]:
    """The rows of a model, in the order of the data flow.

    Args:
      model: called as `model(x, train=False)`.
      shape: of one example, without the batch: (H, W, C), (T, H, W, C), (N, F), ...
      frozen: regular expressions on names of parameters that are not trained, besides
        those that the model itself names (`model.frozen`).
    Raises:
      ValueError: what the model raises on a shape that does not fit.
    """
    called: dict[str, tuple[nn.Module, tuple]] = {}

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.method_name == "__call__":
            out = jax.tree.leaves(result)[0]
            called.setdefault(
                "/".join(context.module.path), (context.module, out.shape)
            )
        return result

    def init(key, x):
        with nn.intercept_methods(record):
            return model.init(key, x, train=False)

    x = jax.ShapeDtypeStruct((_BATCH, *shape), jnp.float32)
    variables = jax.eval_shape(init, jax.random.key(0), x)
    owned = _by_owner(variables.get("params", {}))
    patterns = [*getattr(model, "frozen", ()), *frozen]
    rows = []
    for name, (module, out) in called.items():
        params = owned.pop(name, {})
        fires = alphabet(module) if isinstance(module, neuron.Neuron) else ""
        if params or fires:
            out = tuple("B" if n == _BATCH else n for n in out)
            still = _matching(name, params, patterns)
            rows.append(Layer(name, _kind(module), out, params, fires, still))
    for name, params in owned.items():  # of modules that other methods use
        still = _matching(name, params, patterns)
        rows.append(Layer(name, "", (), params, "", still))
    return rows


def _by_owner(params: Any) -> dict[str, dict[str, tuple[int, ...]]]:
    """{module path: {parameter: shape}}."""
    owned: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *module, name = (key.key for key in path)
        owned.setdefault("/".join(module), {})[name] = leaf.shape
    return owned


def _matching(module: str, params: Mapping[str, Any], patterns: Sequence[str]):
    names = {name: f"{module}/{name}".lstrip("/") for name in params}
    return tuple(
        name
        for name, full in names.items()
        if any(re.fullmatch(pattern, full) for pattern in patterns)
    )


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv):
        stride = max(module.strides if isinstance(module.strides, tuple) else (1,))
        size = "x".join(map(str, module.kernel_size))
        return f"conv {size}" + (f"/{stride}" if stride > 1 else "")
    if isinstance(module, nn.Dense):
        return "linear"
    if isinstance(module, BatchNorm):
        return "BN"
    name = type(module).__name__
    return f"P{name}" if name == "LIF" and module.learn_tau else name


def alphabet(module: neuron.Neuron) -> str:
    """The values its spikes can have, "{0, 1}"."""
    if isinstance(module, neuron.Integer):
        n = module.levels
        return f"{{0, 1/{n}, ..., 1}}" if module.normalise else f"{{0, ..., {n}}}"
    known = {"binary": "{0, 1}", "ternary": "{-1, 0, 1}"}
    return known.get(module.kind, module.kind)


def total(rows: Sequence[Layer]) -> int:
    """Parameters of the model."""
    return sum(row.count for row in rows)


# ---- as text

Group = tuple[list[str], list[Layer]]  # names of those that are alike, rows of one


def groups(rows: Sequence[Layer]) -> list[Group]:
    """Rows with repeated blocks told once: [([], rows), (["block_0", "block_1"], …)].

    Rows of a block have their names below it. Blocks are one group if they follow each
    other and differ in nothing but their number.
    """
    found: list[Group] = []
    for block, members in groupby(rows, key=_block):
        members = list(members)
        if block:
            members = [row._replace(name=row.name[len(block) + 1 :]) for row in members]
        names, before = found[-1] if found else ([], [])
        if names and before == members and _stem(names[-1]) == _stem(block):
            names.append(block)
        else:
            found.append(([block] if block else [], members))
    return found


def _block(row: Layer) -> str:
    match = _REPEATED.fullmatch(row.name)
    return match[1] + match[2] if match else ""


def _stem(block: str) -> str:
    return block.rstrip("0123456789")


def text(rows: Sequence[Layer]) -> str:
    """The table for people, and the sum below it."""
    lines: list[tuple[str, ...] | str] = [
        ("layer", "kind", "output", "parameters", "shapes, firing")
    ]
    for blocks, members in groups(rows):
        if blocks:
            each = f"{total(members):,} parameters"
            title = blocks[0] if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"
            alike = f", x {len(blocks)}" if len(blocks) > 1 else ""
            lines.append(f"{title}{alike}: {each}{' each' if alike else ''}")
        lines += [_cells(row, "  " if blocks else "") for row in members]
    cells = [line for line in lines if not isinstance(line, str)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def show(line) -> str:
        if isinstance(line, str):
            return line
        name, kind, shape, count, rest = line
        texts = [name.ljust(widths[0]), kind.ljust(widths[1]), shape.ljust(widths[2])]
        return "  ".join([*texts, count.rjust(widths[3]), rest]).rstrip()

    return "\n".join([*map(show, lines), *_sums(rows)])


def _cells(row: Layer, indent: str) -> tuple[str, ...]:
    largest_first = sorted(row.params.items(), key=lambda p: prod(p[1]), reverse=True)
    every = len(row.frozen) == len(row.params)
    shapes = (
        ("x".join(map(str, shape)) or name)
        + (" (frozen)" if name in row.frozen and not every else "")
        for name, shape in largest_first
    )
    details = [" + ".join(shapes)]
    if row.frozen and every:
        details.append("frozen")
    if row.fires:
        details.append(f"fires {row.fires}")
    shape = f"[{', '.join(map(str, row.shape))}]" if row.shape else ""
    count = f"{row.count:,}" if row.params else ""
    rest = ", ".join(filter(None, details))
    return f"{indent}{row.name}", row.kind, shape, count, rest


def _sums(rows: Sequence[Layer]) -> list[str]:
    firing = [row for row in rows if row.fires]
    line = f"total: {total(rows):,} parameters"
    if still := sum(row.frozen_count for row in rows):
        line += f" ({still:,} of them frozen)"
    if firing:
        count = sum(row.neurons for row in firing)
        line += f"; {len(firing)} layers fire, {count:,} neurons"
    ranks = sorted({len(row.shape) for row in rows} & set(_AXES), reverse=True)
    axes = f"axes: {', '.join(_AXES[n] for n in ranks)}"
    steps = {row.shape[1] for row in rows if len(row.shape) > 2}
    if 1 in steps and len(steps) > 1:
        axes += "; T is 1 where all steps are the same"
    return [line, axes] if ranks else [line]
