"""A2OS2A, VSSA, what lies between them, SDSA and controls, as one Flax module."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from a2os2a_jax.functional import attention, neurons
from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.linear import linear, param_dtype
from a2os2a_jax.modules.norm import BatchNorm

# Every option with the value that leaves the choice to the kind.
UNSET: dict[str, Any] = dict(
    k=None,  # alphabet of the key: "relu", "binary"
    v=None,  # of the value: "ternary", "binary"
    scale=None,  # a number times the product; None is 1, and needs no product
    normalise=None,  # instead of it: "sqrt", "pow2" (`token_scale`), or "shiftmax"
    v_th=None,  # threshold of the neuron on the product; None is the model's own
    order="auto",
    k_gain=1.0,  # initial gain of K's BN
    freeze=None,  # projections that stay as initialised: letters of "qkv"
    projection=True,  # BN(Linear(.)) after that neuron; else its spikes go on
)
_A2OS2A = UNSET | dict(k="relu", v="ternary")
_OF_V = dict(v="ternary", v_th=None, freeze=None, projection=True)
KINDS: dict[str, dict[str, Any]] = {  # the options a kind has, with its own choice
    "a2os2a": _A2OS2A,
    "vssa": UNSET | dict(k="binary", v="binary", scale=0.125, v_th=0.5),
    "sdsa": dict(
        k="binary", v="binary", v_th=0.5, k_gain=1.0, freeze=None, projection=True
    ),
    # controls: what is left when Q and K do not learn, or V does not, or there are none
    "frozen_qk": _A2OS2A | dict(freeze="qk"),
    "frozen_v": _A2OS2A | dict(freeze="v"),
    "uniform": _OF_V,
    "v_only": _OF_V,
    "none": {},
}
LATER = ("ssa", "dssa", "qk_token")
ALPHABETS = {"k": ("relu", "binary"), "v": ("ternary", "binary")}
NORMALISE = (*attention.SCALES, "shiftmax")
SHIFTMAX_V_TH = 0.5  # the product stays within [-1, 1]: 1 would hardly ever be reached


def resolve(options: str | Mapping[str, Any]) -> dict[str, Any]:
    """Attention options of a model or config, complete: the kind's, then what is given.

    Args:
      options: a kind, or a mapping with "kind" and any of UNSET's keys; None leaves the
        choice to the kind.
    Raises:
      ValueError: an unknown kind, option or value, or an option that the kind has not.
    """
    options = {"kind": options} if isinstance(options, str) else dict(options)
    kind = options.pop("kind", "a2os2a")
    if kind not in KINDS:
        later = " (not built yet)" if kind in LATER else ""
        raise ValueError(
            f"attention.kind: got {kind!r}{later}, expected one of {tuple(KINDS)}"
        )
    if unknown := sorted(set(options) - set(UNSET)):
        raise ValueError(
            f"attention: got {unknown}, expected options in {sorted(UNSET)}"
        )
    given = {k: x for k, x in options.items() if x is not None and x != UNSET[k]}
    has = set(KINDS[kind]) - ({"freeze"} if kind.startswith("frozen") else set())
    if extra := {key: x for key, x in given.items() if key not in has}:
        raise ValueError(
            f"attention: got {extra}, expected only {sorted(has) or 'no options'} with "
            f"kind {kind!r}"
        )
    full = {"kind": kind} | KINDS[kind] | given
    for key, names in (ALPHABETS | dict(normalise=(None, *NORMALISE))).items():
        if key in full and full[key] not in names:
            raise ValueError(
                f"attention.{key}: got {full[key]!r}, expected one of {names}"
            )
    if "order" in full and full["order"] not in attention.ORDERS:
        raise ValueError(
            f"attention.order: got {full['order']!r}, expected {attention.ORDERS}"
        )
    for key in ("scale", "k_gain", "v_th"):
        value = full.get(key)
        if value is not None and not (_is_number(value) and value > 0):
            raise ValueError(f"attention.{key}: got {value!r}, expected a number > 0")
    letters = [name for name in "qkv" if name in has or name == "q" and "k" in has]
    frozen = str(full.get("freeze") or "")
    if set(frozen) - set(letters) or len(set(frozen)) < len(frozen):
        raise ValueError(
            f"attention.freeze: got {frozen!r}, expected letters of {''.join(letters)}"
        )
    if full.get("normalise"):
        if "scale" in given:
            raise ValueError(
                f"attention: got scale {full['scale']} and normalise "
                f"{full['normalise']!r}, expected one of them"
            )
        full["scale"] = None
        if full["normalise"] == "shiftmax":
            if full["order"] == "q_kv":
                raise ValueError(
                    "attention.order: got 'q_kv', expected 'auto' or 'qk_v' with "
                    "shiftmax, which needs Q K^T"
                )
            full["v_th"] = SHIFTMAX_V_TH if full["v_th"] is None else full["v_th"]
    return full


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def frozen(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Names, as regular expressions below the module, of what must not be trained."""
    return tuple(f"{name}_linear/kernel" for name in options.get("freeze") or "")


class SpikingSelfAttention(nn.Module):
    """BN(Linear(SN_b(product(Q, K, V)))), [B, T, N, D] spikes -> [B, T, N, D] membrane.

        Q = SN_b(BN(S W_Q))                        {0, 1}
        K = ReLU(BN(S W_K))  or SN_b               R >= 0, or {0, 1}
        V = SN_t(BN(S W_V))  or SN_b               {-1, 0, 1}, or {0, 1}
        product = Q K^T V, per head; times scale where there is one
                  sum of V over tokens         kind "uniform", no Q and K
                  V                            kind "v_only"

    Kind "sdsa" has a mask instead, BN(Linear(Q ⊙ SN_b(sum of K ⊙ V over tokens))), K
    and V binary, with a neuron of [B, T, 1, D]; the public code's max-pools for event
    cameras (dvs=True) are not built.

    Q, K, V without bias in front of their BN, the projection with one; without
    `projection` the spikes in front of it are handed on. `options` as `resolve` gives
    them. folded: no bias but the norms', and the scale is in the threshold of SN_b
    (`models.fold`). Source: Guo et al. 2025, arXiv:2503.00226; Yao et al. 2023,
    arXiv:2307.01694, for "sdsa".
    """

    dim: int
    heads: int
    options: Mapping[str, Any]
    neuron: Mapping[str, Any]
    dtype: Any
    folded: bool = False

    @nn.compact
    def __call__(self, s: jax.Array, train: bool) -> jax.Array:
        o = self.options
        compares = "k" in o
        if compares:
            q = self._heads(self._spikes("q", "binary", self._project("q", s, train)))
            k = self._project("k", s, train, gain=o["k_gain"])
            if o["k"] == "relu":
                k = neurons.relu(k).astype(self.dtype)
            else:
                k = self._spikes("k", "binary", k)
            k = self._heads(k)
        v = self._heads(self._spikes("v", o["v"], self._project("v", s, train)))
        if o["kind"] == "sdsa":
            a = attention.sdsa(q, k, v, self._fire).reshape(s.shape)
        else:
            scale = self._scale(tokens=v.shape[-3])
            unit = 1 / scale if self.folded and scale else 1.0
            own = None if self.folded else scale
            product = self._product(q, k, v, own) if compares else self._of_v(v)
            a = self._fire(product, unit).reshape(s.shape)
        if not o["projection"]:
            return a.astype(param_dtype(self.dtype))
        how = dict(bias=not self.folded, dtype=self.dtype)
        a = linear(self.dim, **how, name="proj_linear")(a)
        return self._norm("proj")(a, train)

    def _fire(self, product: jax.Array, unit: float = 1.0) -> jax.Array:
        """The attention's neuron, [B, T, N, heads, d] to spikes of that shape."""
        v_th = self.options["v_th"]
        own = {} if v_th is None else {"v_th": v_th}
        own |= {} if unit == 1 else {"unit": unit}
        x = product.reshape(*product.shape[:-2], self.dim)
        return self._heads(self._spikes("attention", "binary", x, **own))

    def _of_v(self, v: jax.Array) -> jax.Array:
        wide = param_dtype(self.dtype)
        if self.options["kind"] == "uniform":
            return jnp.broadcast_to(v.sum(-3, wide, keepdims=True), v.shape)
        return v.astype(wide)

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, self.dim // self.heads)

    def _scale(self, tokens: int) -> float | None:
        """What the product is multiplied with; None is nothing."""
        normalise = self.options.get("normalise")
        if normalise in attention.SCALES:
            return attention.token_scale(normalise, tokens)
        return self.options.get("scale")

    def _product(self, q, k, v, scale: float | None) -> jax.Array:
        o = self.options
        if o["normalise"] == "shiftmax":
            return attention.shift_attention(q, k, v)
        if scale is None:
            return attention.a2os2a(q, k, v, o["order"])
        return attention.ssa(q, k, v, scale, o["order"])

    def _norm(self, name: str, gain: float = 1.0) -> BatchNorm:
        how = dict(param_dtype=param_dtype(self.dtype), folded=self.folded)
        return BatchNorm(gain, **how, name=f"{name}_bn")

    def _project(self, name, s, train, gain=1.0):
        still = name in (self.options["freeze"] or "")
        how = dict(bias=False, dtype=self.dtype, frozen=still)
        x = linear(self.dim, **how, name=f"{name}_linear")(s)
        return self._norm(name, gain)(x, train)

    def _spikes(self, name, form, x, **own):
        make = neuron.make
        return make(form, self.neuron, dtype=self.dtype, name=f"{name}_neuron", **own)(
            x
        )
