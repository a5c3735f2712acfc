"""Random images with a class in them: a stand-in of any size, made on the device.

    x = pattern[label] + noise,   label = index mod classes

The pattern is 4x4 numbers for each class and channel, enlarged to the image. Both terms
are uniform with variance 1. A model that trains at all lowers its loss on it.
"""

import functools
import math

import jax
import jax.numpy as jnp

from a2os2a_jax.data import pipeline

PATTERN, TRAIN, TEST = range(3)  # streams of random numbers


def load(
    *,
    size: int = 32,
    channels: int = 3,
    classes: int = 10,
    timesteps: int | None = None,
    train_examples: int = 256,
    test_examples: int = 100,
    validation: int = 0,
) -> pipeline.Dataset:
    """Images [size, size, channels], or [timesteps, size, size, channels].

    Frames share the pattern and differ in noise. `validation` examples are the last of
    the training ones: labels go round, so every class has its share.

    Raises:
      ValueError: a count is not positive, or validation leaves nothing to train on.
    """
    frames = () if timesteps is None else (timesteps,)
    pipeline.check_at_least(1, "fake", size=size, channels=channels, classes=classes)
    pipeline.check_at_least(1, "fake", timesteps=min(frames, default=1))
    pipeline.check_at_least(
        1, "fake", train_examples=train_examples, test_examples=test_examples
    )
    if not 0 <= validation < train_examples:
        raise ValueError(
            f"data.validation: got {validation} examples, expected 0 to "
            f"{train_examples - 1}"
        )
    shape = (*frames, size, size, channels)

    def make(index, stream, first):
        index = index + first
        label = index % classes
        pattern = _uniform(PATTERN, label, (4, 4, channels))
        cell = jnp.arange(size) * 4 // size  # of the pattern, for a row or column
        pattern = jnp.broadcast_to(pattern[cell[:, None], cell], shape)
        return pattern + _uniform(stream, index, shape), label

    split = functools.partial(pipeline.generated_split, make=make)
    kept = train_examples - validation
    return pipeline.Dataset(
        name="fake",
        shape=shape,
        classes=classes,
        train=split(kept, numbers=(TRAIN, 0)),
        test=split(test_examples, numbers=(TEST, 0)),
        validation=split(validation, numbers=(TRAIN, kept)) if validation else None,
        class_names=tuple(map(str, range(classes))),
        about="a pattern for each class in noise, for smoke tests and benchmarks",
    )


def _uniform(
    stream: int | jax.Array, number: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    key, edge = pipeline.stream_key(stream, number), math.sqrt(3)
    # flat, because in three dimensions it takes three times as long to compile
    flat = jax.random.uniform(key, (math.prod(shape),), jnp.float32, -edge, edge)
    return flat.reshape(shape)
