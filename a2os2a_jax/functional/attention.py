"""Spiking attention products. They return the product; the neuron is the caller's.

Arrays are [..., N, heads, d]: tokens, heads, head dimension. Leading axes (batch,
time) are independent. Sums are accumulated in at least float32, and the result has that
dtype, because it goes onto a membrane.
"""

import jax
import jax.numpy as jnp

ORDERS = ("auto", "qk_v", "q_kv")


def _check(name: str, q: jax.Array, k: jax.Array, v: jax.Array, order: str) -> None:
    if q.ndim < 3 or k.shape != v.shape:
        raise ValueError(
            f"{name}: got q {q.shape}, k {k.shape}, v {v.shape}, expected "
            "q [..., N, heads, d] and k, v of one shape [..., M, heads, d]"
        )
    if q.shape[:-3] != k.shape[:-3] or q.shape[-2:] != k.shape[-2:]:
        raise ValueError(
            f"{name}: q {q.shape} and k {k.shape} differ elsewhere than in tokens"
        )
    if order not in ORDERS:
        raise ValueError(f"{name}: order is {order!r}, expected one of {ORDERS}")


def resolve_order(order: str, queries: int, keys: int, head_dim: int) -> str:
    """`auto` becomes the cheaper order; for N = M that is qk_v when N <= d.

    Per head qk_v costs 2·2 N M d operations, and q_kv 2 (N + M) d².
    """
    if order != "auto":
        return order
    return "qk_v" if 2 * queries * keys <= (queries + keys) * head_dim else "q_kv"


def _product(q, k, v, order):
    """Q K^T V per head, in the order asked for."""
    order = resolve_order(order, q.shape[-3], k.shape[-3], q.shape[-1])
    dtype = jnp.result_type(q, k, v)
    wide = jnp.promote_types(dtype, jnp.float32)

    def einsum(spec, a, b):
        return jnp.einsum(
            spec, a.astype(dtype), b.astype(dtype), preferred_element_type=wide
        )

    if order == "qk_v":
        scores = einsum("...nhd,...mhd->...hnm", q, k)
        return einsum("...hnm,...mhd->...nhd", scores, v)
    context = einsum("...mhd,...mhe->...hde", k, v)
    return einsum("...nhd,...hde->...nhe", q, context)


def a2os2a(q: jax.Array, k: jax.Array, v: jax.Array, order: str = "auto") -> jax.Array:
    """Accurate addition-only spiking self-attention: Q K^T V, no softmax, no scale.

        Q in {0, 1},  K >= 0 real,  V in {-1, 0, 1}

    so that either order needs additions alone. The orders agree up to float rounding,
    and exactly once K is an integer and partial sums stay below 2^24 (float32) or 2^8
    (bfloat16, in which the inner product is handed on).

    Args:
      q, k, v: [..., N, heads, d]; the alphabets are the caller's, and not checked.
      order: "qk_v" (Q K^T) V, "q_kv" Q (K^T V), or "auto": the cheaper.
    Returns:
      [..., N, heads, d], at least float32.
    Raises:
      ValueError: shapes that do not fit, an unknown order.
    Source: Guo et al. 2025, arXiv:2503.00226.
    """
    _check("a2os2a", q, k, v, order)
    return _product(q, k, v, order)


def ssa(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: float = 0.125,
    order: str = "auto",
) -> jax.Array:
    """Spiking self-attention of binary spikes: Q K^T V · scale, no softmax.

    The paper's "vanilla" attention (VSSA) is this, then a neuron of threshold 0.5.

    Args:
      q, k, v: [..., N, heads, d].
      scale: s; 0.125 in the public code, whatever d.
      order: as in `a2os2a`.
    Returns:
      [..., N, heads, d], at least float32.
    Raises:
      ValueError: shapes that do not fit, an unknown order.
    Source: Zhou et al. 2023 (Spikformer), arXiv:2209.15425.
    """
    _check("ssa", q, k, v, order)
    return _product(q, k, v, order) * scale
