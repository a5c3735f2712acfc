"""A2OS2A, VSSA and the alphabets between them, as one Flax module."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from a2os2a_jax.functional import attention, neurons
from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.linear import linear, param_dtype
from a2os2a_jax.modules.norm import BatchNorm

# k: alphabet of the key; v: of the value; scale: None is 1, and needs no product;
# v_th: threshold of the neuron on the product, None is the model's own.
KINDS: dict[str, dict[str, Any]] = {
    "a2os2a": dict(k="relu", v="ternary", scale=None, v_th=None),
    "vssa": dict(k="binary", v="binary", scale=0.125, v_th=0.5),
    "none": dict(k=None, v=None, scale=None, v_th=None),
}
LATER = (
    "uniform",
    "v_only",
    "frozen_qk",
    "frozen_v",
    "ssa",
    "sdsa",
    "dssa",
    "qk_token",
)
ALPHABETS = {"k": ("relu", "binary"), "v": ("ternary", "binary")}
_COMMON = dict(order="auto", k_gain=1.0)


def resolve(options: str | Mapping[str, Any]) -> dict[str, Any]:
    """Attention options of a model or config, complete: the kind's, then what is given.

    Args:
      options: a kind, or a mapping with "kind" and any of k ("relu", "binary"), v
        ("ternary", "binary"), scale (a number; None for the kind's), v_th, order,
        k_gain.
    Raises:
      ValueError: an unknown kind, option, alphabet or order.
    """
    options = {"kind": options} if isinstance(options, str) else dict(options)
    kind = options.pop("kind", "a2os2a")
    if kind not in KINDS:
        later = " (not built yet)" if kind in LATER else ""
        raise ValueError(
            f"attention.kind: got {kind!r}{later}, expected one of {tuple(KINDS)}"
        )
    known = {**KINDS[kind], **_COMMON}
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"attention: got {unknown}, expected options in {sorted(known)}"
        )
    given = {key: value for key, value in options.items() if value is not None}
    if kind == "none":
        if extra := {k: v for k, v in given.items() if v != _COMMON.get(k)}:
            raise ValueError(f"attention: kind 'none' has no options, got {extra}")
        return {"kind": kind}
    full = known | given
    for key in ("scale", "k_gain"):
        if full[key] is not None and not full[key] > 0:
            raise ValueError(f"attention.{key}: got {full[key]}, expected > 0")
    for key, alphabet in ALPHABETS.items():
        if full[key] not in alphabet:
            raise ValueError(
                f"attention.{key}: got {full[key]!r}, expected one of {alphabet}"
            )
    if full["order"] not in attention.ORDERS:
        raise ValueError(
            f"attention.order: got {full['order']!r}, expected {attention.ORDERS}"
        )
    return {"kind": kind, **full}


class SpikingSelfAttention(nn.Module):
    """BN(Linear(SN_b(product(Q, K, V)))), [B, T, N, D] spikes -> [B, T, N, D] membrane.

        Q = SN_b(BN(S W_Q))                        {0, 1}
        K = ReLU(BN(S W_K))  or SN_b               R >= 0, or {0, 1}
        V = SN_t(BN(S W_V))  or SN_b               {-1, 0, 1}, or {0, 1}
        product = Q K^T V, per head; times scale where there is one

    Q, K, V without bias in front of their BN, the projection with one. `options` as
    `resolve` gives them. Source: Guo et al. 2025, arXiv:2503.00226.
    """

    dim: int
    heads: int
    options: Mapping[str, Any]
    neuron: Mapping[str, Any]
    dtype: Any

    @nn.compact
    def __call__(self, s: jax.Array, train: bool) -> jax.Array:
        o = self.options
        q = self._spikes("q", "binary", self._project("q", s, train))
        k = self._project("k", s, train, gain=o["k_gain"])
        if o["k"] == "relu":
            k = neurons.relu(k).astype(self.dtype)
        else:
            k = self._spikes("k", "binary", k)
        v = self._spikes("v", o["v"], self._project("v", s, train))
        q, k, v = (
            x.reshape(*x.shape[:-1], self.heads, self.dim // self.heads)
            for x in (q, k, v)
        )
        if o["scale"] is None:
            product = attention.a2os2a(q, k, v, o["order"])
        else:
            product = attention.ssa(q, k, v, o["scale"], o["order"])
        product = product.reshape(s.shape)
        own = {} if o["v_th"] is None else {"v_th": o["v_th"]}
        a = self._spikes("attention", "binary", product, **own)
        a = linear(self.dim, bias=True, dtype=self.dtype, name="proj_linear")(a)
        return self._norm("proj")(a, train)

    def _norm(self, name: str, gain: float = 1.0) -> BatchNorm:
        return BatchNorm(gain, param_dtype=param_dtype(self.dtype), name=f"{name}_bn")

    def _project(self, name, s, train, gain=1.0):
        x = linear(self.dim, bias=False, dtype=self.dtype, name=f"{name}_linear")(s)
        return self._norm(name, gain)(x, train)

    def _spikes(self, name, form, x, **own):
        make = neuron.make
        return make(form, self.neuron, dtype=self.dtype, name=f"{name}_neuron", **own)(
            x
        )
