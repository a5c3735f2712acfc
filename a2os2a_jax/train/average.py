"""The mean of weights, of several checkpoints of one run."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def average(trees: Sequence[Any]) -> Any:
    """Leaf by leaf the mean of `trees`, summed in float32 at least.

    Dtypes stay those of the first. Running statistics of BN are averaged as parameters
    are: those of the averaged weights are not measured again, and the two differ the
    more, the further apart the checkpoints lie.

    Raises:
      ValueError: no trees, trees of unlike structure or shapes, or a leaf that is not
        floating point.
    Source: Izmailov et al. 2018, arXiv:1803.05407, who measure them again.
    """
    if not trees:
        raise ValueError("average: got no trees, expected one or more")
    shapes = [jax.tree.map(jnp.shape, tree) for tree in trees]
    if any(s != shapes[0] for s in shapes[1:]):
        raise ValueError(
            f"average: got {len(trees)} trees that differ, expected one structure and "
            "the same shapes"
        )

    def mean(*leaves: jax.Array) -> jax.Array:
        dtype = jnp.asarray(leaves[0]).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"average: got a leaf of {dtype}, expected floating point")
        wide = jnp.promote_types(dtype, jnp.float32)
        total = sum(jnp.asarray(x, wide) for x in leaves)
        return (total / len(leaves)).astype(dtype)

    return jax.tree.map(mean, *trees)
