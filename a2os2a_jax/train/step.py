"""One step of training, one of evaluation: pure functions, jitted by `loop`.

Both take (state or variables, resident, payload): `payload` is what a data split's
`fetch` sent, and its `gather` makes the batch, inside the compiled program.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from a2os2a_jax.analysis import rates
from a2os2a_jax.data.augment import Augment
from a2os2a_jax.data.mix import Mix
from a2os2a_jax.data.pipeline import Split
from a2os2a_jax.train import losses, optim

PyTree = Any
CONFUSION = 1024  # classes up to which a matrix of them is counted
BINS = 15  # of the confidence, as in Guo et al. 2017, arXiv:1706.04599


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
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: jax.Array,
    image: jax.Array,
    *,
    ema: bool = False,
) -> TrainState:
    """The state before the first step; `image` is a batch of one, of any values.

    ema: keep an average, which starts as what is averaged.
    """
    variables = model.init(key, image, train=False)
    params, stats = variables["params"], variables["batch_stats"]
    state = TrainState(jnp.zeros((), jnp.int32), params, stats, tx.init(params))
    return state._replace(ema=state.variables) if ema else state


class Inputs(NamedTuple):
    """What becomes of a batch between the data and the model.

    augment: see `data.augment.build`. mix: see `data.mix.build`.
    classes: how many there are; needed to mix.
    mix_until: step from which on nothing is mixed; None for never.
    """

    augment: Augment | None = None
    mix: Mix | None = None
    classes: int = 0
    mix_until: int | None = None

    def __call__(
        self, batch: dict[str, jax.Array], key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(images [B, ...], labels [B], or [B, classes] with `mix`)."""
        images, labels = batch["image"], batch["label"]
        if self.augment is not None:
            images = self.augment(key, images)
        if self.mix is not None:
            on = True if self.mix_until is None else step < self.mix_until
            targets = jax.nn.one_hot(labels, self.classes)
            key = jax.random.fold_in(key, _MIX)
            images, labels = self.mix(key, images, targets, jnp.asarray(on))
        return images, labels


UNCHANGED = Inputs()


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    split: Split,
    *,
    key: jax.Array,
    inputs: Inputs = UNCHANGED,
    loss: losses.Loss | None = None,
    accumulate: int = 1,
    ema: float | None = None,
    frozen: Sequence[str] = (),
) -> Callable[[TrainState, PyTree, PyTree], tuple[TrainState, dict[str, jax.Array]]]:
    """(state, resident, payload) -> (state, metrics), to be jitted.

    Randomness is a function of (key, state.step), so a resumed run draws what the
    uninterrupted one would have drawn. Metrics are scalars: loss (the one minimised),
    accuracy (of the augmented batch, by each example's own label), grad_norm (before
    clipping, of what is not frozen), lr.

    Args:
      inputs: what becomes of the images on their way to the model.
      loss: cross entropy of the scores averaged over time by default.
      accumulate: the batch is taken in so many parts, one after the other, to save
        memory; the gradient is the mean of theirs. Batch normalisation sees one part at
        a time, and its running statistics move once for each.
      ema: decay of the average in `state.ema`, see `average`.
      frozen: names of parameters, as regular expressions, that no gradient is computed
        for. That they stay as they are is the business of `tx`.
    """
    loss = losses.make("cross_entropy") if loss is None else loss
    how = {"per_step": True} if loss.per_step else {}

    def loss_fn(params, batch_stats, images, targets, labels, drop_key):
        if frozen:
            still = optim.named(params, frozen)
            params = jax.tree.map(
                lambda p, fixed: jax.lax.stop_gradient(p) if fixed else p, params, still
            )
        logits, new = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"drop_path": drop_key},
            **how,
        )
        value = loss.value(logits, targets).mean()
        answer = logits.mean(1) if loss.per_step else logits
        accuracy = (answer.argmax(-1) == labels).mean()
        return value, (accuracy, new["batch_stats"])

    def part(params, batch_stats, resident, payload, key, now):
        """(gradient, loss, accuracy, batch_stats) of one micro-batch."""
        batch = split.gather(resident, payload)
        images, targets = inputs(batch, key, now)
        drop_key = jax.random.fold_in(key, _DROP_PATH)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (value, (accuracy, batch_stats)), grads = grad_fn(
            params, batch_stats, images, targets, batch["label"], drop_key
        )
        return (grads, value, accuracy), batch_stats

    def parts(params, batch_stats, resident, payload, key, now):
        def body(carry, x):
            sums, batch_stats = carry
            i, payload = x
            new, batch_stats = part(
                params, batch_stats, resident, payload, jax.random.fold_in(key, i), now
            )
            return (jax.tree.map(jnp.add, sums, new), batch_stats), None

        many = jax.tree.map(lambda x: _apart(x, accumulate), payload)
        one = jax.tree.map(lambda x: x[0], many)
        shapes, _ = jax.eval_shape(part, params, batch_stats, resident, one, key, now)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (sums, batch_stats), _ = jax.lax.scan(
            body, (zeros, batch_stats), (jnp.arange(accumulate), many)
        )
        return jax.tree.map(lambda x: x / accumulate, sums), batch_stats

    def train_step(state: TrainState, resident: PyTree, payload: PyTree):
        step_key = jax.random.fold_in(key, state.step)
        compute = part if accumulate == 1 else parts
        (grads, value, accuracy), batch_stats = compute(
            state.params, state.batch_stats, resident, payload, step_key, state.step
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": value,
            "accuracy": accuracy,
            "grad_norm": optax.tree.norm(grads),
            "lr": jnp.asarray(rate(state.step)),
        }
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, batch_stats, opt_state)
        # else the next step would be compiled again, and donate nothing
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state._replace(ema=None))
        if ema is not None:
            moved = average(state.ema, new.variables, ema, state.step)
            new = new._replace(ema=moved)
        return new, metrics

    return train_step


# beyond the size of any batch: augment's keys are below
_DROP_PATH, _MIX = 0x64726F70, 0x6D697875


def make_many_steps(train_step: Callable, most: int) -> Callable:
    """(state, resident, payloads, count) -> (state, metrics), `count` steps at once.

    payloads: those of `most` steps, stacked, of which the first `count` are taken.
    metrics: [most] each, of which the first `count` were measured. How many steps go
    into a call changes no number: it is one program for any count.
    """

    def many_steps(state: TrainState, resident: PyTree, payloads: PyTree, count):
        first = jax.tree.map(lambda x: x[0], payloads)
        _, shapes = jax.eval_shape(train_step, state, resident, first)
        rows = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)

        def body(i, carry):
            state, rows = carry
            payload = jax.tree.map(lambda x: x[i], payloads)
            state, row = train_step(state, resident, payload)
            return state, jax.tree.map(lambda all, x: all.at[i].set(x), rows, row)

        return jax.lax.fori_loop(0, count, body, (state, rows))

    return many_steps


def _apart(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]: part j has examples j, j + parts, ...

    So every device keeps the examples it has.
    """
    x = jnp.asarray(x)
    return jnp.moveaxis(x.reshape(len(x) // parts, parts, *x.shape[1:]), 1, 0)


def average(old: PyTree, new: PyTree, decay: float, step: jax.Array) -> PyTree:
    """d old + (1 - d) new, d = min(decay, (1 + step) / (10 + step)), per array.

    The second term keeps the start from lasting; step counts from 0. Arrays of two
    shapes are an AssertionError: they would be stretched in silence.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(old, new)
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, b: a + (1 - d).astype(b.dtype) * (b - a), old, new)


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

    An example of label -1 could not be read, and counts as masked, here and below.

    Sums: correct, correct5 (of the five best, or of all classes if fewer), loss (cross
    entropy without smoothing), count. Divide by count in the end. And see `_faults`.
    """

    def eval_step(variables, resident, payload, mask):
        batch = split.gather(resident, payload)
        logits = model.apply(variables, batch["image"], train=False)
        labels = batch["label"]
        kept = (mask > 0) & (labels >= 0)
        best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
        hits = best == labels[:, None]
        each = {
            "correct": hits[:, 0],
            "correct5": hits.any(-1),
            "loss": losses.cross_entropy(logits, labels),
            "count": kept,
        }
        each |= _faults(batch, logits.shape[-1])
        return {k: jnp.where(kept, v, 0).sum() for k, v in each.items()}

    return eval_step


def _faults(batch: dict[str, jax.Array], classes: int) -> dict[str, jax.Array]:
    """{"not_finite", "beyond"}, [B] bool: NaN or infinity; a label that is no class.

    A score would not show them: neurons answer NaN with silence.
    """
    images = batch["image"]
    finite = jnp.isfinite(images).all(range(1, images.ndim))
    return {"not_finite": ~finite, "beyond": batch["label"] >= classes}


def make_report_step(
    model: nn.Module, split: Split
) -> Callable[[PyTree, PyTree, PyTree, jax.Array], dict[str, jax.Array]]:
    """(variables, resident, payload, mask [B]) -> sums over the examples with mask 1.

    One pass, with the scores of every step. The answer after t steps is the mean of
    the scores of steps 1 to t; everything but `correct` is of the last.

    Sums, counts as integers:
      correct [T]: after 1 to T steps.
      correct5 [], loss [], count []: as in `make_eval_step`.
      not_finite [], beyond []: see `_faults`.
      class_count [C], class_correct [C]: examples of each label, and those known.
      confusion [C, C]: examples of label (row) that were taken for class (column); of
        at most CONFUSION classes, as beyond it takes more memory than a model.
      bin_count, bin_correct, bin_confidence [BINS]: by the softmax of the best class,
        bin i being (i / BINS, (i + 1) / BINS].
    """

    def report_step(variables, resident, payload, mask):
        batch = split.gather(resident, payload)
        scores = model.apply(variables, batch["image"], train=False, per_step=True)
        labels = batch["label"]
        kept = (mask > 0) & (labels >= 0)
        _, steps, classes = scores.shape
        so_far = jnp.cumsum(scores, 1) / jnp.arange(1, steps + 1)[None, :, None]
        answers = so_far.argmax(-1)  # [B, T]
        logits, answer = so_far[:, -1], answers[:, -1]
        right = (answers == labels[:, None]) & kept[:, None]
        best = jax.lax.top_k(logits, min(5, classes))[1]
        confidence = jax.nn.softmax(logits).max(-1)
        edges = np.arange(1, BINS) / BINS  # by numpy: rounded once, to the nearest
        edges = jnp.asarray(edges, confidence.dtype)
        which = jnp.searchsorted(edges, confidence)  # how many lie below

        def binned(values):
            return jnp.zeros(BINS, values.dtype).at[which].add(values)

        count = kept.astype(jnp.int32)
        loss = losses.cross_entropy(logits, labels)
        each = jnp.zeros(classes, jnp.int32)
        sums = {k: (kept & v).sum() for k, v in _faults(batch, classes).items()}
        if classes <= CONFUSION:
            confusion = jnp.zeros((classes, classes), jnp.int32)
            sums["confusion"] = confusion.at[labels, answer].add(count)
        return sums | {
            "correct": right.sum(0),
            "correct5": ((best == labels[:, None]).any(-1) & kept).sum(),
            "loss": jnp.where(kept, loss, 0).sum(),
            "count": count.sum(),
            "class_count": each.at[labels].add(count),
            "class_correct": each.at[labels].add(right[:, -1].astype(jnp.int32)),
            "bin_count": binned(count),
            "bin_correct": binned(right[:, -1].astype(jnp.int32)),
            "bin_confidence": binned(jnp.where(kept, confidence, 0)),
        }

    return report_step


def make_activity_step(
    model: nn.Module, split: Split
) -> Callable[[PyTree, PyTree, PyTree, jax.Array], dict[str, Any]]:
    """(variables, resident, payload, mask [B]) -> what each example of a batch does.

    The result holds "counted" [B], 1 where mask is and the example could be read, and
    {layer: (counts [B], entries of an example)} as "firing_rate", neurons and steps
    with a spike of either sign, and as "near_threshold", those whose membrane, before
    the reset, was within 1 of the threshold.
    """

    def activity_step(variables, resident, payload, mask):
        batch = split.gather(resident, payload)
        collections = ["spikes", "potentials"]
        _, sown = model.apply(
            variables, batch["image"], train=False, mutable=collections
        )
        spikes, distances = (rates.layers(sown[name]) for name in collections)
        return {
            "counted": jnp.where(batch["label"] < 0, 0, mask > 0),
            "firing_rate": {k: rates.counts(s != 0) for k, s in spikes.items()},
            "near_threshold": {
                k: rates.counts(jnp.abs(u) < 1) for k, u in distances.items()
            },
        }

    return activity_step
