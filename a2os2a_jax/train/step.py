"""One step of training, one of evaluation: pure functions, jitted by `loop`.

Both take (state or variables, resident, payload): `payload` is what a data split's
`fetch` sent, and its `gather` makes the batch, inside the compiled program.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from a2os2a_jax.analysis import rates
from a2os2a_jax.data.augment import Augment
from a2os2a_jax.data.pipeline import Split
from a2os2a_jax.train import losses

PyTree = Any


class TrainState(NamedTuple):
    """step []: steps done; the rest are pytrees of arrays, whole on every device.

    ema: moving average of `variables`, or None without `train.ema`.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: PyTree = None

    @property
    def variables(self) -> dict[str, PyTree]:
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def judged(self) -> dict[str, PyTree]:
        """What is evaluated: the average where there is one."""
        return self.variables if self.ema is None else self.ema


def init_state(
    model: nn.Module, tx: optax.GradientTransformation, key: jax.Array, image: jax.Array
) -> TrainState:
    """The state before the first step; `image` is a batch of one, of any values."""
    variables = model.init(key, image, train=False)
    params = variables["params"]
    return TrainState(
        jnp.zeros((), jnp.int32), params, variables["batch_stats"], tx.init(params)
    )


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    split: Split,
    *,
    key: jax.Array,
    augment: Augment | None = None,
    label_smoothing: float = 0.0,
) -> Callable[[TrainState, PyTree, PyTree], tuple[TrainState, dict[str, jax.Array]]]:
    """(state, resident, payload) -> (state, metrics), to be jitted.

    Randomness is a function of (key, state.step), so a resumed run draws what the
    uninterrupted one would have drawn. Metrics are scalars: loss (the one minimised),
    accuracy (of the augmented batch), grad_norm (before clipping), lr.
    """

    def train_step(state: TrainState, resident: PyTree, payload: PyTree):
        batch = split.gather(resident, payload)
        images, labels = batch["image"], batch["label"]
        if augment is not None:
            images = augment(jax.random.fold_in(key, state.step), images)

        def loss_fn(params):
            logits, new = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            loss = losses.cross_entropy(logits, labels, label_smoothing).mean()
            return loss, (logits, new["batch_stats"])

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (logits, batch_stats)), grads = grad_fn(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": loss,
            "accuracy": (logits.argmax(-1) == labels).mean(),
            "grad_norm": optax.tree.norm(grads),
            "lr": jnp.asarray(rate(state.step)),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return train_step


def finite(tree: PyTree) -> dict[str, jax.Array]:
    """{"params/head/kernel": [] bool}: whether all numbers of each leaf are finite.

    A spiking layer swallows what is not: NaN is below every threshold, and an infinite
    running variance divides to 0, so the loss may well stay finite.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): jnp.isfinite(leaf).all() for path, leaf in flat}


def make_eval_step(
    model: nn.Module, split: Split
) -> Callable[[PyTree, PyTree, PyTree, jax.Array], dict[str, jax.Array]]:
    """(variables, resident, payload, mask [B]) -> sums over the examples with mask 1.

    Sums: correct, correct5 (of the five best, or of all classes if fewer), loss (cross
    entropy without smoothing), count. Divide by count in the end.
    """

    def eval_step(variables, resident, payload, mask):
        batch = split.gather(resident, payload)
        logits = model.apply(variables, batch["image"], train=False)
        labels = batch["label"]
        best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
        hits = best == labels[:, None]
        each = {
            "correct": hits[:, 0],
            "correct5": hits.any(-1),
            "loss": losses.cross_entropy(logits, labels),
            "count": jnp.ones_like(mask),
        }
        return {k: jnp.where(mask > 0, v, 0).sum() for k, v in each.items()}

    return eval_step


def make_activity_step(
    model: nn.Module, split: Split
) -> Callable[[PyTree, PyTree, PyTree, jax.Array], dict[str, dict[str, jax.Array]]]:
    """(variables, resident, payload, mask [B]) -> {"firing_rate", "near_threshold"}.

    Per layer, over the examples with mask 1. firing_rate: share of neurons and steps
    with a spike of either sign. near_threshold: share whose membrane, before the reset,
    was within 1 of the threshold.
    """

    def activity_step(variables, resident, payload, mask):
        images = split.gather(resident, payload)["image"]
        collections = ["spikes", "potentials"]
        _, sown = model.apply(variables, images, train=False, mutable=collections)
        fired = rates.measure_rates(sown["spikes"], mask=mask)
        return {
            "firing_rate": {name: r.rate for name, r in fired.items()},
            "near_threshold": rates.measure_near_threshold(
                sown["potentials"], mask=mask
            ),
        }

    return activity_step
