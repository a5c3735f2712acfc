"""Every spiking attention, as one Flax module; a row of KINDS says what each one is.

`SpikingSelfAttention` projects and fires q, k and v, a kind mixes them, and what comes
of it is projected once more. To add one: its function in `functional.attention`, and a
row here.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from a2os2a_jax.functional import attention, checks, neurons, pooling
from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.conv import RepConv
from a2os2a_jax.modules.linear import conv, conv3x3, linear, param_dtype
from a2os2a_jax.modules.norm import BatchNorm

# Every option with the value that leaves the choice to the kind.
UNSET: dict[str, Any] = dict(
    q=None,  # alphabet of the query: a key of ALPHABETS, likewise below
    k=None,  # of the key; "relu" as well
    v=None,  # of the value
    scale=None,  # a number times the product; None is 1, and needs no product
    normalise=None,  # instead of it: "sqrt", "pow2" (`token_scale`), or "shiftmax"
    v_th=None,  # threshold of the neuron on the product; None is the model's own
    order="auto",
    k_gain=1.0,  # initial gain of K's BN
    freeze=None,  # projections that stay as initialised: letters of "qkv"
    projection=True,  # BN(Linear(.)) after that neuron; else its spikes go on
    bias=None,  # of the maps to q, k and v; True or False
    alpha=None,  # kind "xnor": what two silent channels count
    chunk=None,  # kind "statten": steps whose tokens are joined
    levels=None,  # kind "integer": the most spikes of a step
    patch=None,  # kind "dssa": pixels of a key token's side
    dilate=None,  # kind "sdsa": maxima of 3x3 of K, V, K V and Q, its form for events
)


class Kind(NamedTuple):
    """One attention.

    options: that it has, with its own choice.
    mix: (layer, q, k, v) -> spikes [B, T, N, heads, d]; what has no alphabet is None.
    source: where it is from. parity: what proves it, "as public code" (tests/modules/
    test_parity.py), "own reference", "from the text" by which alone it was written.
    square: its tokens have to be a square map. rep: its maps are `RepConv`. depthwise:
    BN(depthwise conv3x3(S)) is added to what it gives.
    """

    options: Mapping[str, Any]
    mix: Callable[..., jax.Array] | None
    source: str
    parity: str = "from the text"
    square: bool = False
    rep: bool = False
    depthwise: bool = False


def _product(layer, q, k, v):
    o = layer.options
    if o.get("normalise") == "shiftmax":
        return layer.fire(attention.shift_attention(q, k, v))
    return layer.fire(attention.a2os2a(q, k, v, o["order"]))


def _sdsa(layer, q, k, v):
    if not layer.options["dilate"]:
        return attention.sdsa(q, k, v, layer.fire)
    image = functools.partial(pooling.max_of_neighbours, side=layer.side)
    return attention.sdsa(q, k, v, layer.fire, image, pooling.max_of_entries)


def _qk_token(layer, q, k, v):
    return attention.qk_token(q, k, layer.fire)


def _qk_channel(layer, q, k, v):
    return attention.qk_channel(q, k, layer.fire)


def _sasa(layer, q, k, v):
    return attention.sasa(q, k, layer.fire)


def _statten(layer, q, k, v):
    o = layer.options
    return layer.fire(attention.statten(q, k, v, o["chunk"], o["order"]))


def _xnor(layer, q, k, v):
    o = layer.options
    return layer.fire(attention.xnor(q, k, v, o["alpha"], o["order"]))


def _uniform(layer, q, k, v):
    wide = param_dtype(layer.dtype)
    return layer.fire(jnp.broadcast_to(v.sum(-3, wide, keepdims=True), v.shape))


def _v_only(layer, q, k, v):
    return layer.fire(v.astype(param_dtype(layer.dtype)))


def _in_order(options: Mapping[str, Any]) -> dict[str, Any]:
    """As UNSET has them: kind, q, k, v, ..."""
    return {name: options[name] for name in ("kind", *UNSET) if name in options}


def _with(*names: str, **own: Any) -> dict[str, Any]:
    return {name: UNSET[name] for name in names} | own


_ALL = ("v_th", "freeze", "projection", "bias")
_QK = _with("k_gain", *_ALL, q="binary", k="binary")
_QKV = _QK | _with("scale", "normalise", "order", v="binary")
_A2OS2A = _QKV | dict(k="relu", v="ternary")
_SSA = _QKV | dict(scale=0.125, v_th=0.5)
_REP = {k: x for k, x in _SSA.items() if k not in ("freeze", "bias")}
_INTEGER = {k: x for k, x in _QKV.items() if k not in ("v_th", "normalise")}
_OF_V = _with(*_ALL, v="ternary")
_GUO = "Guo et al. 2025, arXiv:2503.00226"
_QKFORMER = "Zhou et al. 2024 (QKFormer), arXiv:2403.16552"
KINDS: dict[str, Kind] = {
    "a2os2a": Kind(_A2OS2A, _product, _GUO, "own reference"),
    "vssa": Kind(_SSA, _product, f"{_GUO}, its baseline", "as public code"),
    "ssa": Kind(
        _SSA,
        _product,
        "Zhou et al. 2023 (Spikformer), arXiv:2209.15425",
        "as public code",
    ),
    "sdsa": Kind(
        _QK | dict(v="binary", v_th=0.5, dilate=False),
        _sdsa,
        "Yao et al. 2023 (Spike-Driven Transformer), arXiv:2307.01694",
        "as public code",
    ),
    "sdsa3": Kind(
        _REP,
        _product,
        "Yao et al. 2024 (Meta-SpikeFormer), arXiv:2404.03663",
        square=True,
        rep=True,
    ),
    "dssa": Kind(
        dict(patch=1),
        None,  # a module of its own, `modules.dssa`
        "Shi et al. 2024 (SpikingResformer), arXiv:2403.14302",
        "as public code",
        square=True,
    ),
    "qk_token": Kind(_QK | dict(v_th=0.5), _qk_token, _QKFORMER, "as public code"),
    "qk_channel": Kind(_QK | dict(v_th=0.5), _qk_channel, _QKFORMER),
    "statten": Kind(
        _QKV | dict(normalise="sqrt", v_th=0.5, chunk=2),
        _statten,
        "Lee et al. 2024 (STAtten), arXiv:2409.19764",
    ),
    "xnor": Kind(
        _SSA | dict(alpha=0.5),
        _xnor,
        "Xiao et al. 2025 (alpha-XNOR), CVPR",
    ),
    "sasa": Kind(
        _QK | dict(v_th=0.5),
        _sasa,
        "Zhang et al. 2024 (SAFormer), arXiv:2412.13553",
        square=True,
        depthwise=True,
    ),
    "integer": Kind(
        _INTEGER | dict(q="integer", k="integer", v="integer", levels=4),
        _product,
        "Yao et al. 2024 (E-SpikeFormer), arXiv:2411.16061",
    ),
    "bsa": Kind(
        _QKV | dict(q="ternary", k="ternary", normalise="shiftmax"),
        _product,
        "NeurIPS 2025, OpenReview nG45z7lJ7D",
    ),
    # controls: what is left when Q and K do not learn, or V does not, or there are none
    "frozen_qk": Kind(
        _A2OS2A | dict(freeze="qk"), _product, "a control", "own reference"
    ),
    "frozen_v": Kind(
        _A2OS2A | dict(freeze="v"), _product, "a control", "own reference"
    ),
    "uniform": Kind(_OF_V, _uniform, "a control", "own reference"),
    "v_only": Kind(_OF_V, _v_only, "a control", "own reference"),
    "none": Kind({}, None, "a control", "own reference"),
}
KINDS = {name: k._replace(options=_in_order(k.options)) for name, k in KINDS.items()}
SPIKING = ("binary", "ternary", "integer")
ALPHABETS = {"q": SPIKING, "k": ("relu", *SPIKING), "v": SPIKING}
_OF_SPIKES = ("sdsa", "qk_token", "qk_channel", "xnor", "sasa")  # q and k in {0, 1}
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
    options = {"kind": options} if isinstance(options, str) else options
    options = {key: checks.plain(value) for key, value in options.items()}
    kind = options.pop("kind", "a2os2a")
    if kind not in KINDS:
        raise ValueError(
            f"attention.kind: got {kind!r}, expected one of {tuple(KINDS)}"
        )
    if unknown := sorted(set(options) - set(UNSET)):
        raise ValueError(
            f"attention: got {unknown}, expected options in {sorted(UNSET)}"
        )
    own = KINDS[kind].options
    given = {k: x for k, x in options.items() if x is not None and x != UNSET[k]}
    has = set(own) - ({"freeze"} if kind.startswith("frozen") else set())
    if extra := {key: x for key, x in given.items() if key not in has}:
        raise ValueError(
            f"attention: got {extra}, expected only {sorted(has) or 'no options'} with "
            f"kind {kind!r}"
        )
    full = _in_order({"kind": kind} | dict(own) | given)
    for key, names in (ALPHABETS | dict(normalise=(None, *NORMALISE))).items():
        if key in full and full[key] not in names:
            raise ValueError(
                f"attention.{key}: got {full[key]!r}, expected one of {names}"
            )
    if kind in _OF_SPIKES and (full["q"], full["k"]) != ("binary", "binary"):
        raise ValueError(
            f"attention: got q {full['q']!r} and k {full['k']!r}, expected 'binary' "
            f"for both with kind {kind!r}, whose equation is of {{0, 1}}"
        )
    if "order" in full and full["order"] not in attention.ORDERS:
        raise ValueError(
            f"attention.order: got {full['order']!r}, expected {attention.ORDERS}"
        )
    for key in ("scale", "k_gain", "v_th", "alpha"):
        value = full.get(key)
        if value is not None and not (_is_number(value) and value > 0):
            raise ValueError(f"attention.{key}: got {value!r}, expected a number > 0")
    for key in ("chunk", "levels", "patch"):
        value = full.get(key)
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise ValueError(
                f"attention.{key}: got {value!r}, expected an integer >= 1"
            )
    for key in ("bias", "dilate"):
        if full.get(key) not in (None, True, False):
            raise ValueError(f"attention.{key}: got {full[key]!r}, expected a bool")
    letters = [name for name in "qkv" if full.get(name)]
    frozen = str(full.get("freeze") or "")
    if set(frozen) - set(letters) or len(set(frozen)) < len(frozen):
        raise ValueError(
            f"attention.freeze: got {frozen!r}, expected letters of {''.join(letters)}"
        )
    if "integer" in (full.get(name) for name in "qkv") and not full.get("levels"):
        raise ValueError(
            f"attention: got the alphabet 'integer' with kind {kind!r}, expected it "
            "with the kind 'integer', which has levels"
        )
    if full.get("normalise"):
        if "scale" in given and "normalise" not in given:
            full["normalise"] = None  # what is given goes before the kind's own
        elif "scale" in given:
            raise ValueError(
                f"attention: got scale {full['scale']} and normalise "
                f"{full['normalise']!r}, expected one of them"
            )
        else:
            full["scale"] = None
    if full.get("normalise") == "shiftmax":
        if full["order"] == "q_kv":
            raise ValueError(
                "attention.order: got 'q_kv', expected 'auto' or 'qk_v' with "
                "shiftmax, which needs Q K^T"
            )
        if kind in ("statten", "xnor", "sdsa3"):
            raise ValueError(
                f"attention.normalise: got 'shiftmax', expected sqrt or pow2 with "
                f"kind {kind!r}"
            )
        full["v_th"] = SHIFTMAX_V_TH if full["v_th"] is None else full["v_th"]
    return full


def options_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the options that the kind has; none of an unknown kind."""
    kind = KINDS.get(options.get("kind") or "a2os2a")
    return tuple(kind.options) if kind else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def frozen(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Names, as regular expressions below the module, of what must not be trained."""
    return tuple(f"{name}_linear/kernel" for name in options.get("freeze") or "")


def whole_sequences(options: Mapping[str, Any]) -> str | None:
    """Why an attention needs all frames at once; None if it does not."""
    if (options.get("chunk") or 1) == 1:
        return None
    return (
        f"got attention {options['kind']!r}, which joins {options['chunk']} steps, "
        "expected one that answers frame by frame"
    )


class SpikingSelfAttention(nn.Module):
    """BN(Linear(SN_b(product(Q, K, V)))), [B, T, N, D] spikes -> [B, T, N, D] membrane.

        Q = SN(BN(S W_Q))                        {0, 1}
        K = ReLU(BN(S W_K)) or SN                R >= 0, or {0, 1}
        V = SN_t(BN(S W_V)) or SN                {-1, 0, 1}, or {0, 1}
        product = Q K^T V, per head; times scale where there is one

    What another kind has in place of the product stands in KINDS, and its equation in
    `functional.attention`. Q, K, V without bias in front of their BN (`bias`), the
    projection with one; without `projection` the spikes in front of it are handed on.

    options: as `resolve` gives them. side: the tokens are a side x side map, row-major;
    None where there is no map. initial: of the maps, a key of `linear.INITS`.
    folded: no bias but the norms', and the scale is in the threshold of SN_b
    (`models.fold`). Source: Guo et al. 2025, arXiv:2503.00226; others in KINDS.
    """

    dim: int
    heads: int
    options: Mapping[str, Any]
    neuron: Mapping[str, Any]
    dtype: Any
    folded: bool = False
    side: int | None = None
    initial: str = "normal"

    @nn.compact
    def __call__(self, s: jax.Array, train: bool) -> jax.Array:
        o = self.options
        q, k, v = (
            self._part(name, s, train) if o.get(name) else None for name in "qkv"
        )
        a = KINDS[o["kind"]].mix(self, q, k, v).reshape(s.shape)
        if o["projection"]:
            a = self._map("proj", a, train, bias=True)
        else:
            a = a.astype(param_dtype(self.dtype))
        if KINDS[o["kind"]].depthwise:
            a = a + self._depthwise(s, train)
        return a

    def fire(self, product: jax.Array) -> jax.Array:
        """The attention's neuron, [B, T, N, heads, d] to spikes of that shape."""
        o, own = self.options, {}
        scale, form = self._scale(product.shape[-3]), "binary"
        if "integer" in (o.get(name) for name in "qkv"):
            form, own = "integer", dict(levels=o["levels"])
        elif o.get("v_th") is not None:
            own = dict(v_th=o["v_th"])
        if scale is not None:
            if self.folded and form == "binary":
                own |= dict(unit=1 / scale)
            else:
                product = product * scale
        *outer, heads, width = product.shape
        x = product.reshape(*outer, heads * width)
        return self._spikes("attention", form, x, **own).reshape(product.shape)

    def _scale(self, tokens: int) -> float | None:
        """What the product is multiplied with; None is nothing."""
        o = self.options
        if o.get("normalise") in attention.SCALES:
            return attention.token_scale(o["normalise"], tokens)
        if o["kind"] == "integer" and o["scale"] is None:
            return (self.dim // self.heads) ** -0.5
        return o.get("scale")

    def _part(self, name: str, s: jax.Array, train: bool) -> jax.Array:
        """q, k or v, [B, T, N, heads, d], in its alphabet."""
        o = self.options
        gain = o["k_gain"] if name == "k" else 1.0
        still = name in (o.get("freeze") or "")
        bias = bool(o.get("bias"))
        x = self._map(name, s, train, bias=bias, gain=gain, frozen=still)
        if o[name] == "relu":
            x = neurons.relu(x).astype(self.dtype)
        elif o[name] == "integer":
            x = self._spikes(name, "integer", x, levels=o["levels"])
        else:
            x = self._spikes(name, o[name], x)
        return x.reshape(*x.shape[:-1], self.heads, self.dim // self.heads)

    def _map(self, name, x, train, *, bias, gain=1.0, frozen=False) -> jax.Array:
        """BN(Linear(x)), or of a re-parameterised convolution."""
        if KINDS[self.options["kind"]].rep:
            image, dtype = self._image(x), self.dtype
            if self.folded:
                y = conv3x3(self.dim, dtype=dtype, name=f"{name}_conv")(image)
            else:
                how = dict(dtype=dtype, initial=self.initial)
                y = RepConv(self.dim, **how, name=f"{name}_rep")(image, train)
            y = y.reshape(x.shape)
        else:
            y = linear(
                self.dim,
                bias=bias and not self.folded,
                dtype=self.dtype,
                frozen=frozen,
                init=self.initial,
                inputs=self.dim,
                name=f"{name}_linear",
            )(x)
        return self._norm(name, gain)(y, train)

    def _depthwise(self, s: jax.Array, train: bool) -> jax.Array:
        how = dict(groups=self.dim, dtype=self.dtype, init=self.initial)
        y = conv(self.dim, **how, name="depth_conv")(self._image(s)).reshape(s.shape)
        return self._norm("depth")(y, train)

    def _image(self, x: jax.Array) -> jax.Array:
        """[B, T, N, D] as [B, T, side, side, D]."""
        return x.reshape(*x.shape[:-2], self.side, self.side, self.dim)

    def _norm(self, name: str, gain: float = 1.0) -> BatchNorm:
        how = dict(param_dtype=param_dtype(self.dtype), folded=self.folded)
        return BatchNorm(gain, **how, name=f"{name}_bn")

    def _spikes(self, name, form, x, **own):
        make = neuron.make
        return make(form, self.neuron, dtype=self.dtype, name=f"{name}_neuron", **own)(
            x
        )
