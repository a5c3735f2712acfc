"""Spiking attention products. They return the product; the neuron is the caller's.

Arrays are [..., N, heads, d]: tokens, heads, head dimension. Leading axes (batch,
time) are independent. Sums are accumulated in at least float32, and the result has that
dtype, because it goes onto a membrane. Where a neuron stands inside, it is the caller's
too: `fire` takes sums to spikes of the same shape, with the leading axes where they
were. *From the text* marks what was written from a paper, without public outputs to
compare with.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

ORDERS = ("auto", "qk_v", "q_kv")
SCALES = ("sqrt", "pow2")

Fire = Callable[[jax.Array], jax.Array]  # a neuron: sums to spikes of the same shape
Pool = Callable[[jax.Array], jax.Array]  # spikes to spikes of the same shape


def _arrays(name: str, q, k, v, order: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(q, k, v) as arrays; ValueError, in the name of `name`, if they do not fit."""
    q, k, v = map(jnp.asarray, (q, k, v))
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
    return q, k, v


def _alike(name: str, q, k) -> tuple[jax.Array, jax.Array]:
    """(q, k) as arrays; ValueError, in the name of `name`, if their shapes differ."""
    q, k = jnp.asarray(q), jnp.asarray(k)
    if q.ndim < 3 or q.shape != k.shape:
        raise ValueError(
            f"{name}: got q {q.shape}, k {k.shape}, expected one shape "
            "[..., N, heads, d]"
        )
    return q, k


def _sum(x: jax.Array, axis: int) -> jax.Array:
    """Over one axis, which stays with length 1; at least float32."""
    return x.sum(axis, jnp.promote_types(x.dtype, jnp.float32), keepdims=True)


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
    q, k, v = _arrays("a2os2a", q, k, v, order)
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
    return _scaled("ssa", q, k, v, scale, order)


def sdsa3(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: float = 0.125,
    order: str = "auto",
) -> jax.Array:
    """SDSA-3 of Meta-SpikeFormer: Q (K^T V) · scale, no softmax. *From the text.*

    Q, K, V in {0, 1}. As a product it is `ssa`; what is new are the re-parameterised
    convolutions in front, which are the caller's. Assumed: the scale, as in `ssa`.

    Args:
      q, k, v: [..., N, heads, d].
      scale: s.
      order: as in `a2os2a`; the paper's is "q_kv".
    Returns:
      [..., N, heads, d], at least float32.
    Raises:
      ValueError: shapes that do not fit, an unknown order.
    Source: Yao et al. 2024 (Meta-SpikeFormer), arXiv:2404.03663.
    """
    return _scaled("sdsa3", q, k, v, scale, order)


def integer(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: float | None = None,
    order: str = "auto",
) -> jax.Array:
    """E-SpikeFormer's attention of integer spikes: Q K^T V · scale. *From the text.*

    Q, K, V in {0, 1, ..., D}, or these over D: counts of binary spikes in D slots. As a
    product it is `ssa`. It is no product of additions until the counts are expanded
    (`spikes.expand`). Assumed: the scale.

    Args:
      q, k, v: [..., N, heads, d].
      scale: s; None is 1 / sqrt(d).
      order: as in `a2os2a`.
    Returns:
      [..., N, heads, d], at least float32.
    Raises:
      ValueError: shapes that do not fit, an unknown order.
    Source: Yao et al. 2024 (E-SpikeFormer), arXiv:2411.16061.
    """
    return _scaled("integer", q, k, v, scale, order)


def _scaled(name, q, k, v, scale, order):
    q, k, v = _arrays(name, q, k, v, order)
    return _product(q, k, v, order) * (q.shape[-1] ** -0.5 if scale is None else scale)


def statten(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    chunk: int = 2,
    order: str = "auto",
) -> jax.Array:
    """Spatial-temporal attention: Q (K^T V) over the tokens of several time steps.

        out[t, n] = Q[t, n] · sum of K[t', m]^T V[t', m]
                    over all tokens m and all steps t' of the chunk that t is in

    Q, K, V in {0, 1}. Chunks of `chunk` steps lie end to end and do not see each other;
    within one, a step sees later ones, so that a stream has to wait for its chunk.
    *From the text.* Left to the caller: the factor 1/H and the neuron. In a model H is
    taken for the side of the map, and the factor for 1/sqrt(N) with the N tokens of one
    step, which is the same and is defined without a map as well; assumed is the
    threshold 0.5 of `ssa`.

    Args:
      q: [..., T, N, heads, d], time on axis -4. k, v: [..., T, M, heads, d].
      chunk: steps whose tokens are joined, a divisor of T; 1 is `ssa` without a scale.
      order: as in `a2os2a`, with chunk · N for N.
    Returns:
      [..., T, N, heads, d], at least float32.
    Raises:
      ValueError: no time axis, a chunk that does not divide T, shapes that do not fit,
        an unknown order.
    Source: Lee et al. 2024 (STAtten), arXiv:2409.19764, with chunk = 2.
    """
    q, k, v = _arrays("statten", q, k, v, order)
    if q.ndim < 4:
        raise ValueError(f"statten: got q {q.shape}, expected [..., T, N, heads, d]")
    steps = q.shape[-4]
    if chunk < 1 or steps % chunk:
        raise ValueError(
            f"statten: got chunk {chunk} with T = {steps}, expected a divisor of T"
        )

    def join(x):
        *batch, _, tokens, heads, d = x.shape
        return x.reshape(*batch, steps // chunk, chunk * tokens, heads, d)

    return _product(join(q), join(k), join(v), order).reshape(q.shape)


def xnor(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    alpha: float | jax.Array,
    order: str = "auto",
) -> jax.Array:
    """Alpha-XNOR attention: two silent entries are alike, too, by alpha.

        score[n, m] = sum over d of  q k + alpha (1 - q) (1 - k)
        out[n] = sum over m of score[n, m] V[m]

    Q, K, V in {0, 1}: both sums are of spikes, and their silence, and integers; alpha
    is the only factor, and is multiplied with once, on the sum. A power of two is a
    shift. *From the text* of the abstract. Assumed: no scale here, and in a model the
    0.125 and the threshold 0.5 of `ssa` with alpha 0.5; alpha is one number for
    all heads, given by the caller, who may train it.

    Args:
      q, k, v: [..., N, heads, d].
      alpha: what a pair without spikes counts; 0 is `ssa` without a scale, 1 is XNOR.
      order: as in `a2os2a`.
    Returns:
      [..., N, heads, d], at least float32.
    Raises:
      ValueError: shapes that do not fit, an unknown order, an alpha that is no scalar.
    Source: Xiao et al. 2025, Rethinking Spiking Self-Attention Mechanism, CVPR.
    """
    q, k, v = _arrays("xnor", q, k, v, order)
    if jnp.ndim(alpha):
        raise ValueError(
            f"xnor: got alpha of shape {jnp.shape(alpha)}, expected a number"
        )
    return _product(q, k, v, order) + alpha * _product(1 - q, 1 - k, v, order)


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
    fire: Fire,
    pool: Pool | None = None,
    pool_products: Pool | None = None,
) -> jax.Array:
    """Spike-driven self-attention: a mask over channels, Q ⊙ fire(sum of K ⊙ V).

        K, V <- pool(K), pool(V)
        a = fire(sum over tokens of pool_products(K ⊙ V))
        out = pool_products(Q ⊙ a)

    Q, K, V in {0, 1}: every product is a mask, and the sum over tokens counts. Linear
    in N, and no channel sees another unless a pool lets it.

    The public code's form for event cameras (dvs=True) takes the maximum of 3x3 entries
    all four times: over the image for K and V (`pooling.max_of_neighbours`), but over
    token number and channel for K ⊙ V and the masked Q (`pooling.max_of_entries`).

    Args:
      q: [..., N, heads, d]. k, v: [..., M, heads, d].
      fire: the caller's neuron, [..., 1, heads, d] sums (at least float32) to spikes.
      pool: of K and V, spikes to spikes of the same shape; None is none.
      pool_products: of K ⊙ V and of the masked Q; None is `pool`.
    Returns:
      [..., N, heads, d], dtype of q: spikes, which go into weights as they are.
    Raises:
      ValueError: shapes that do not fit.
    Source: Yao et al. 2023 (Spike-Driven Transformer), arXiv:2307.01694, SDSA-1.
    """
    q, k, v = _arrays("sdsa", q, k, v, "auto")
    pool = pool or (lambda x: x)
    pool_products = pool_products or pool
    a = fire(_sum(pool_products(pool(k) * pool(v)), -3))
    return pool_products(q * a.astype(q.dtype))


def sasa(q: jax.Array, k: jax.Array, fire: Fire) -> jax.Array:
    """Spike aggregated self-attention: Q ⊙ fire(sum of Q ⊙ K), without a V.

        a = fire(sum over tokens of Q ⊙ K)
        out = Q ⊙ a

    Q, K in {0, 1}; `sdsa` with Q for V. *From the text* of the abstract, which says
    that the weights come from the spikes of query and key alone, and that they are
    aggregated. Assumed: aggregation is the sum over tokens, per channel; the weights
    are fired and mask Q, in a model with the threshold 0.5 of `sdsa`. The depth-wise
    convolution beside it is the caller's.

    Args:
      q, k: [..., N, heads, d].
      fire: the caller's neuron, [..., 1, heads, d] sums (at least float32) to spikes.
    Returns:
      [..., N, heads, d], dtype of q: spikes.
    Raises:
      ValueError: shapes that differ.
    Source: Zhang et al. 2024 (SAFormer), arXiv:2412.13553.
    """
    q, k = _alike("sasa", q, k)
    return sdsa(q, k, q, fire)


def qk_token(q: jax.Array, k: jax.Array, fire: Fire) -> jax.Array:
    """Q-K token attention: which tokens of K go on, by the spikes that Q has there.

        a = fire(sum over d of Q)        [..., N, heads, 1]
        out = a ⊙ K

    Q, K in {0, 1}: a count and a mask, linear in N; tokens do not see each other.

    Args:
      q, k: [..., N, heads, d].
      fire: the caller's neuron, [..., N, heads, 1] sums (at least float32) to spikes.
    Returns:
      [..., N, heads, d], dtype of k: spikes.
    Raises:
      ValueError: shapes that differ.
    Source: Zhou et al. 2024 (QKFormer), arXiv:2403.16552.
    """
    q, k = _alike("qk_token", q, k)
    return fire(_sum(q, -1)).astype(k.dtype) * k


def qk_channel(q: jax.Array, k: jax.Array, fire: Fire) -> jax.Array:
    """Q-K channel attention: which channels of K go on, by the spikes that Q has there.

        a = fire(sum over tokens of Q)   [..., 1, heads, d]
        out = a ⊙ K

    Q, K in {0, 1}: a count and a mask, linear in N. *From the text*: public models have
    the token attention alone, whose threshold, 0.5, is assumed in a model.

    Args:
      q, k: [..., N, heads, d].
      fire: the caller's neuron, [..., 1, heads, d] sums (at least float32) to spikes.
    Returns:
      [..., N, heads, d], dtype of k: spikes.
    Raises:
      ValueError: shapes that differ.
    Source: as `qk_token`.
    """
    q, k = _alike("qk_channel", q, k)
    return fire(_sum(q, -3)).astype(k.dtype) * k


def dssa(
    y1: jax.Array,
    y2: jax.Array,
    s: jax.Array,
    fire: Fire,
    scale1: jax.Array | None = None,
    scale2: jax.Array | Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Dual spike self-attention: spikes s on both sides of real maps y of themselves.

        a[m, n] = fire(scale1 · sum over d of Y1[m] S[n])
        out[n] = scale2 · sum over m of a[m, n] Y2[m]

    S in {0, 1}, Y1 and Y2 real: every product has a spike in it. The public model has
    scale1 = 1 / sqrt(f_s d) and scale2 = 1 / sqrt(f_a M), with the firing rates f of S
    and a per head, which may be folded into what made Y1 and Y2.

    Args:
      y1, y2: [..., M, heads, d], of M patches of the image of S.
      s: [..., N, heads, d].
      fire: the caller's neuron, [..., heads, M, N] (at least float32) to spikes.
      scale1: [heads]; None is none, and needs no product.
      scale2: the same, or a function that makes it of the spikes a [..., heads, M, N]
        (a rate that is measured before it is used).
    Returns:
      [..., N, heads, d], at least float32.
    Raises:
      ValueError: shapes that do not fit.
    Source: Shi et al. 2024 (SpikingResformer), arXiv:2403.14302.
    """
    shapes = f"dssa: got y1 {y1.shape}, y2 {y2.shape}, s {s.shape}"
    if s.ndim < 3 or y1.shape != y2.shape:
        raise ValueError(
            f"{shapes}, expected y1, y2 of one shape [..., M, heads, d] and "
            "s [..., N, heads, d]"
        )
    if y1.shape[:-3] != s.shape[:-3] or y1.shape[-2:] != s.shape[-2:]:
        raise ValueError(f"{shapes}, expected them to differ in tokens alone")
    wide = jnp.promote_types(jnp.result_type(y1, y2, s), jnp.float32)

    def einsum(spec, a, b):
        dtype = jnp.result_type(a, b)
        return jnp.einsum(
            spec, a.astype(dtype), b.astype(dtype), preferred_element_type=wide
        )

    def times(x, scale, which, head_axis):
        if scale is None:
            return x
        if jnp.shape(scale) != (heads := s.shape[-2:-1]):
            raise ValueError(
                f"dssa: got {which} of shape {jnp.shape(scale)}, expected {heads}"
            )
        return x * jnp.expand_dims(scale, [i for i in range(x.ndim) if i != head_axis])

    a = einsum("...mhd,...nhd->...hmn", y1, s)
    a = fire(times(a, scale1, "scale1", a.ndim - 3))
    out = einsum("...hmn,...mhd->...nhd", a.astype(s.dtype), y2)
    scale2 = scale2(a) if callable(scale2) else scale2
    return times(out, scale2, "scale2", out.ndim - 2)


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
    return _shifted("shift_attention", q, k, v)


def bsa(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Bipolar self-attention: shiftmax(Q K^T) V of ternary Q and K. *From the text.*

        w[n, m] = 2^(r[n, m] - ceil(log2 of the sum over m of 2^r[n, m])),  r = Q K^T
        out[n] = sum over m of w[n, m] V[m]

    Q, K in {-1, 0, 1}, V in {0, 1}: scores are integers, and weights powers of two that
    pick and add spikes. As a product it is `shift_attention`. Assumed: the rule of
    `shiftmax`, that nothing scales the scores, and in a model the threshold 0.5.

    Args:
      q, k, v: [..., N, heads, d].
    Returns:
      [..., N, heads, d], at least float32, between 0 and 1.
    Raises:
      ValueError: shapes that do not fit.
    Source: Bipolar Self-attention for Spiking Transformers, NeurIPS 2025 (OpenReview
      nG45z7lJ7D), its abstract.
    """
    return _shifted("bsa", q, k, v)


def _shifted(name, q, k, v):
    q, k, v = _arrays(name, q, k, v, "qk_v")
    wide = jnp.promote_types(jnp.result_type(q, k, v), jnp.float32)
    scores = jnp.einsum("...nhd,...mhd->...hnm", q, k, preferred_element_type=wide)
    weights = shiftmax(scores).astype(v.dtype)
    return jnp.einsum("...hnm,...mhd->...nhd", weights, v, preferred_element_type=wide)
