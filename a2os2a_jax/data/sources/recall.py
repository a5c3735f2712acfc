"""Associative recall: name the value that was bound to the key asked for.

    pair n   onehot(key_n) ++ onehot(value_n) ++ 0       n = 1 .. pairs
    query    onehot(key)   ++ 0               ++ 1       the last token

Keys are a fresh permutation for every example, values and the query are uniform, and
the label is the value of the pair that holds the query's key. No token alone tells the
answer, nor does their mean: tokens have to be compared. Chance is 1 / values.
"""

import functools

import jax
import jax.numpy as jnp

from a2os2a_jax.data import pipeline

TRAIN, TEST, VALIDATION = range(3)  # streams of random numbers


def load(
    *,
    pairs: int = 32,
    values: int | None = None,
    classes: int | None = None,
    train_examples: int = 57_600,
    test_examples: int = 4_096,
    validation: int = 0,
    seed: int = 0,
) -> pipeline.Dataset:
    """Tokens [pairs + 1, pairs + values + 1], drawn on the device.

    Training is a stream without end (`Split.fresh`): every step draws new examples from
    `seed`. Test and validation are streams of their own and do not depend on `seed`.

    Args:
      pairs: how many (key, value) tokens an example has, and so how many keys.
      values: classes, 10 by default; `classes` is another name for it.
      train_examples: what counts as an epoch; the default is 900 steps of 64.
      validation: examples of the validation split; none are taken from training.
    Raises:
      ValueError: values and classes differ, or a count is too small.
    """
    if values is not None and classes is not None and values != classes:
        raise ValueError(f"recall: got {values} values, {classes} classes; they differ")
    values = next((n for n in (values, classes) if n is not None), 10)
    pipeline.check_at_least(1, "recall", pairs=pairs, values=values)
    pipeline.check_at_least(
        1, "recall", train_examples=train_examples, test_examples=test_examples
    )
    pipeline.check_at_least(0, "recall", validation=validation)

    def make(index, stream, seed):
        key = jax.random.fold_in(pipeline.stream_key(stream, seed), index)
        return example(key, pairs, values)

    split = functools.partial(pipeline.generated_split, make=make)
    return pipeline.Dataset(
        name="recall",
        shape=(pairs + 1, pairs + values + 1),
        classes=values,
        train=split(train_examples, numbers=(TRAIN, seed), fresh=True),
        test=split(test_examples, numbers=(TEST, 0)),
        validation=split(validation, numbers=(VALIDATION, 0)) if validation else None,
        class_names=tuple(map(str, range(values))),
        about=f"associative recall: {pairs} key-value pairs and a query",
    )


def example(key: jax.Array, pairs: int, values: int) -> tuple[jax.Array, jax.Array]:
    """One example: (tokens [pairs + 1, pairs + values + 1], label [])."""
    # One draw of 32-bit words for everything: it compiles in less than half the time of
    # permutation and randint, and does not change with jax_enable_x64. The remainders
    # are uniform to 1 part in 2^32 / values.
    bits = jax.random.bits(key, (2 * pairs + 1,), jnp.uint32)
    order = jnp.argsort(bits[:pairs])
    bound = (bits[pairs:-1] % values).astype(jnp.int32)
    asked = bits[-1] % pairs  # position of the pair that answers
    onehot = functools.partial(jax.nn.one_hot, dtype=jnp.float32)
    which = onehot(jnp.append(order, order[asked]), pairs)
    what = onehot(jnp.append(bound, -1), values)  # -1: all zeros
    is_query = (jnp.arange(pairs + 1) == pairs).astype(jnp.float32)
    return jnp.concatenate([which, what, is_query[:, None]], axis=1), bound[asked]
