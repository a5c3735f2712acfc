"""The optimizer and its learning rate, from plain numbers."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

SCHEDULES: dict[str, Callable[[float, float, int], optax.Schedule]] = {
    # what follows the warm-up: (lr, min_lr, steps) -> schedule
    "cosine": lambda lr, low, steps: optax.cosine_decay_schedule(lr, steps, low / lr),
    "linear": optax.linear_schedule,
    "constant": lambda lr, low, steps: optax.constant_schedule(lr),
}


def schedule(
    *,
    lr: float,
    warmup_lr: float,
    min_lr: float,
    warmup_steps: int,
    total_steps: int,
    name: str = "cosine",
) -> optax.Schedule:
    """Learning rate per step: linear from warmup_lr up to lr, then as `name` says.

        cosine    min_lr + (lr - min_lr) (1 + cos(pi t)) / 2
        linear    lr + (min_lr - lr) t
        constant  lr

    t runs from 0 at the end of the warm-up to 1 at total_steps.

    Raises:
      ValueError: a warm-up that is not shorter than the training, an unknown name.
    """
    _one_of("optim.schedule", name, SCHEDULES)
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"optim.warmup_epochs: got {warmup_steps} steps, expected fewer than the "
            f"{total_steps} steps of training"
        )
    after = SCHEDULES[name](lr, min_lr, total_steps - warmup_steps)
    if not warmup_steps:
        return after
    warm_up = optax.linear_schedule(warmup_lr, lr, warmup_steps)
    return optax.join_schedules([warm_up, after], [warmup_steps])


def _adamw(rate, momentum, b2, weight_decay):
    how = dict(b1=momentum, b2=b2, weight_decay=weight_decay, mask=decayed)
    return optax.adamw(rate, **how)


def _lamb(rate, momentum, b2, weight_decay):
    how = dict(b1=momentum, b2=b2, weight_decay=weight_decay, mask=decayed)
    return optax.lamb(rate, **how)


def _sgd(rate, momentum, b2, weight_decay):
    decay = optax.add_decayed_weights(weight_decay, decayed)
    return optax.chain(decay, optax.sgd(rate, momentum or None))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    # (rate, momentum, b2, weight_decay) -> transformation
    "adamw": _adamw,
    "lamb": _lamb,
    "sgd": _sgd,
}


def decayed(params: Any) -> Any:
    """True for kernels: biases, norms and time constants have no weight decay."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )


def _names(params: Any) -> list[str]:
    """["block_0/mlp/fc1_linear/kernel", ...], in the order of the leaves."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def named(params: Any, patterns: Sequence[str]) -> Any:
    """True for parameters whose name, "block_0/mlp/fc1_linear/kernel", one matches.

    Raises:
      ValueError: a pattern that is none, or matches the whole name of no parameter.
    """
    names = _names(params)
    for pattern in patterns:
        try:
            matches = any(re.fullmatch(pattern, name) for name in names)
        except re.error as error:
            raise ValueError(
                f"optim.freeze: got {pattern!r}, expected a regular expression: {error}"
            ) from error
        if not matches:
            raise ValueError(
                f"optim.freeze: {pattern!r} matches no parameter; there are "
                f"{', '.join(names[:3])}, ..."
            )
    found = [any(re.fullmatch(p, name) for p in patterns) for name in names]
    return jax.tree.unflatten(jax.tree.structure(params), found)


def layer_scales(params: Any, decay: float) -> Any:
    """decay^(L - i) for each parameter of layer i: the head is layer L, with factor 1.

    Layer 0 is the stem, layer i + 1 the i-th block, through all stages; what leads into
    a stage is of the layer of its first block. A neuron before the head is the head's.
    Source: Clark et al. 2020, arXiv:2003.10555; here by block.
    """
    names = _names(params)
    found = [re.match(r"(?:stage_(\d+)/)?(?:block_(\d+)/)?", name) for name in names]
    places = [(int(match[1] or 0), match[2]) for match in found]
    lengths: dict[int, int] = {}  # blocks of each stage
    for stage, block in places:
        lengths[stage] = max(lengths.get(stage, 0), int(block or -1) + 1)
    last = sum(lengths.values()) + 1

    def layer(name: str, place: tuple[int, str | None]) -> int:
        stage, block = place
        before = sum(n for other, n in lengths.items() if other < stage)
        if re.match(r"head(_\w+)?/", name):  # and its neuron, where it has one
            return last
        if block is None and stage < 2:  # the first stage begins with a stem
            return 0
        return before + int(block or 0) + 1

    depths = map(layer, names, places)
    scales = [decay ** (last - depth) for depth in depths]
    return jax.tree.unflatten(jax.tree.structure(params), scales)


def _scale_layers(decay: float) -> optax.GradientTransformation:
    def update(updates: Any, _params: Any = None) -> Any:
        scales = layer_scales(updates, decay)
        return jax.tree.map(lambda u, s: u * jnp.asarray(s, u.dtype), updates, scales)

    return optax.stateless(update)


def make(
    rate: optax.Schedule,
    *,
    name: str = "adamw",
    weight_decay: float,
    momentum: float = 0.9,
    b2: float = 0.999,
    clip: float | None = None,
    frozen: Sequence[str] = (),
    layer_decay: float = 1.0,
) -> optax.GradientTransformation:
    """Clip the gradient's global norm, then the optimizer, then each layer's factor.

        adamw   decoupled weight decay. Loshchilov and Hutter 2019, arXiv:1711.05101
        lamb    the same with a trust ratio per tensor. You et al. 2020, 1904.00962
        sgd     heavy ball; the decay is part of the gradient

    Args:
      momentum: of sgd; first beta of the others.
      b2: second beta of adamw and lamb.
      frozen: names, as regular expressions, of parameters that stay what they are;
        their gradients count in no norm.
      layer_decay: the rate of a layer is this times that of the next: `layer_scales`.
    Raises:
      ValueError: an unknown name, or a number out of its range.
    """
    _one_of("optim.name", name, OPTIMIZERS)
    for key, value in (("momentum", momentum), ("b2", b2)):
        if not 0 <= value < 1:
            raise ValueError(f"optim.{key}: got {value}, expected 0 <= it < 1")
    if name == "sgd" and b2 != 0.999:
        raise ValueError(f"optim.b2: got {b2}, expected none with sgd, which has none")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"optim.layer_decay: got {layer_decay}, expected 0 < it <= 1")
    steps = [] if clip is None else [optax.clip_by_global_norm(clip)]
    steps.append(OPTIMIZERS[name](rate, momentum, b2, weight_decay))
    if layer_decay != 1:
        steps.append(_scale_layers(layer_decay))
    if frozen:
        still = functools.partial(named, patterns=tuple(frozen))
        zero = optax.masked(optax.set_to_zero(), still)
        steps = [zero, *steps, zero]
    return optax.chain(*steps)


def patterns(text: str | None) -> tuple[str, ...]:
    """ "stem/.*, head/bias" -> ("stem/.*", "head/bias"); commas separate.

    Those inside brackets, as of block_[0,1] and x{1,2}, are the expression's own.
    """
    parts, depth = [""], 0
    for letter in text or "":
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return tuple(part.strip() for part in parts if part.strip())


def _one_of(key: str, value: str, names) -> None:
    if value not in names:
        raise ValueError(f"{key}: got {value!r}, expected one of {', '.join(names)}")
