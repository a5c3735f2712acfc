"""Spiking attention products. They return the product; the neuron is the caller's.

Arrays are [..., N, heads, d]: tokens, heads, head dimension. Leading axes (batch,
time) are independent. Sums are accumulated in at least float32, and the result has that
dtype, because it goes onto a membrane.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

ORDERS = ("auto", "qk_v", "q_kv")
SCALES = ("sqrt", "pow2")


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

    Per head qk_v costs 2 N M d additions if all spikes fire, and q_kv (N + M) d².
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
    # Transposed: else a CPU with units for bfloat16 has no kernel (XLA, DotThunk)
    context = einsum("...mhd,...mhe->...hed", k, v)
    return einsum("...nhd,...hed->...nhe", q, context)


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


def token_scale(how: str, tokens: int) -> float:
    """A scale for the product that knows the number N of keys.

    Args:
      how: "sqrt", 1/sqrt(N); or "pow2", the power of two next to 1/N, whose product is
        a shift.
      tokens: N.
    Raises:
      ValueError: another `how`.
    """
    if how not in SCALES:
        raise ValueError(f"token_scale: got {how!r}, expected one of {SCALES}")
    return tokens**-0.5 if how == "sqrt" else 2.0 ** -round(math.log2(tokens))


def sdsa(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    fire: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Spike-driven self-attention: a mask over channels, Q ⊙ fire(sum of K ⊙ V).

    Q, K, V in {0, 1}: every product is a mask, and the sum over tokens counts. Linear
    in N, and no channel sees another. The public code's `dvs` form, which max-pools K,
    V, K ⊙ V and the masked Q over the image, is not built.

    Args:
      q: [..., N, heads, d]. k, v: [..., M, heads, d].
      fire: the caller's neuron, [..., 1, heads, d] sums (at least float32) to spikes.
    Returns:
      [..., N, heads, d], dtype of q: spikes, which go into weights as they are.
    Raises:
      ValueError: shapes that do not fit.
    Source: Yao et al. 2023 (Spike-Driven Transformer), arXiv:2307.01694, SDSA-1.
    """
    _check("sdsa", q, k, v, "auto")
    wide = jnp.promote_types(jnp.result_type(k, v), jnp.float32)
    sums = (k * v).sum(-3, wide, keepdims=True)
    return q * fire(sums).astype(q.dtype)


@jax.custom_jvp
def shiftmax(scores: jax.Array) -> jax.Array:
    """Rows of powers of two that sum to more than 1/2 and at most 1.

        w_j = 2^(r_j - ceil(log2 sum_i 2^r_i)),   r = round(scores), over the last axis

    Exact: exponents are integers, and every factor is a power of two. A weight below
    2^-126 is 0. The gradient is that of the softmax with base 2 at r, scaled to w,
    straight through the roundings.

    Source: our reading, from its abstract, of the Shiftmax in the bipolar attention of
      NeurIPS 2025 (OpenReview nG45z7lJ7D); rounding real scores is ours.
    """
    return _shiftmax(scores)[0]


def _shiftmax(scores):
    """(weights, powers 2^(r - max r), their sum over the last axis)."""
    r = jnp.round(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)))
    r = (r - r.max(-1, keepdims=True)).clip(-126)
    powers = _power_of_two(r)
    total = powers.sum(-1, keepdims=True)
    # ceil(log2 total) halvings, because 1 <= total <= N: one for every 2^k below it.
    halvings = (
        jnp.where(total > 2.0**k, 0.5, 1.0).astype(r.dtype)
        for k in range(math.ceil(math.log2(r.shape[-1])))
    )
    weights = math.prod(halvings, start=powers)
    return jnp.where(r > -126, weights, 0), powers, total


def _power_of_two(r: jax.Array) -> jax.Array:
    """2^r of whole r in [-126, 0], exact on every backend, which jnp.exp2 is not."""
    down = (-r).astype(jnp.int32)
    bits = (
        jnp.where((down >> i) & 1 == 1, 2.0 ** -(2**i), 1.0).astype(r.dtype)
        for i in range(7)
    )
    return math.prod(bits, start=jnp.ones_like(r))


@shiftmax.defjvp
def _shiftmax_jvp(primals, tangents):
    (scores,), (change,) = primals, tangents
    weights, powers, total = _shiftmax(scores)
    change = change.astype(weights.dtype)
    mean = (powers / total * change).sum(-1, keepdims=True)
    return weights, math.log(2) * weights * (change - mean)


def shift_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """shiftmax(Q K^T) V: a normalised attention whose weights are powers of two.

    Every product with a weight is a shift; there is one order only.

    Args:
      q, k, v: [..., N, heads, d].
    Returns:
      [..., N, heads, d], at least float32, between -1 and 1 for ternary V.
    Raises:
      ValueError: shapes that do not fit.
    Source: as `shiftmax`.
    """
    _check("shift_attention", q, k, v, "qk_v")
    wide = jnp.promote_types(jnp.result_type(q, k, v), jnp.float32)
    scores = jnp.einsum("...nhd,...mhd->...hnm", q, k, preferred_element_type=wide)
    weights = shiftmax(scores).astype(v.dtype)
    return jnp.einsum("...hnm,...mhd->...nhd", weights, v, preferred_element_type=wide)
