"""The optimizer and its learning rate, from plain numbers."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import optax


def schedule(
    *, lr: float, warmup_lr: float, min_lr: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """Learning rate per step: linear from warmup_lr up to lr, then cosine to min_lr.

    Raises:
      ValueError: a warm-up that is not shorter than the training.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"optim.warmup_epochs: got {warmup_steps} steps, expected fewer than the "
            f"{total_steps} steps of training"
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=warmup_lr if warmup_steps else lr,
        peak_value=lr,
        warmup_steps=warmup_steps,
        decay_steps=total_steps,
        end_value=min_lr,
    )


def decayed(params: Any) -> Any:
    """True for kernels: biases, norms and time constants have no weight decay."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )


def named(params: Any, patterns: Sequence[str]) -> Any:
    """True for parameters whose name, "block_0/mlp/fc1_linear/kernel", one matches.

    Raises:
      ValueError: a pattern that matches the whole name of no parameter.
    """
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in names):
            some = ", ".join(names[:3])
            raise ValueError(
                f"frozen: {pattern!r} matches no parameter; there are {some}, ..."
            )
    found = [any(re.fullmatch(p, name) for p in patterns) for name in names]
    return jax.tree.unflatten(jax.tree.structure(params), found)


def adamw(
    rate: optax.Schedule,
    *,
    weight_decay: float,
    clip: float | None = None,
    frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
    """AdamW (0.9, 0.999, 1e-8), after the gradient's global norm is limited to `clip`.

    frozen: names, as regular expressions, of parameters that stay what they are; their
      gradients count in no norm.
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    steps = [] if clip is None else [optax.clip_by_global_norm(clip)]
    steps.append(optax.adamw(rate, weight_decay=weight_decay, mask=decayed))
    if not frozen:
        return optax.chain(*steps)
    still = optax.masked(optax.set_to_zero(), functools.partial(named, patterns=frozen))
    return optax.chain(still, *steps, still)
