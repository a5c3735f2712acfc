"""What each primitive does to alphabets, and what it costs: one rule per primitive.

A rule gets a `Site` (the equation, what is known of its operands, and a place to charge
operations to) and returns what is known of the results. A primitive without a rule, or
with a program in its parameters that its rule does not read, is never proven: its
result is real, and it is charged as unknown.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from a2os2a_jax.analysis.audit import domain
from a2os2a_jax.analysis.audit.domain import BINARY, REAL, Alphabet, Value

# Kinds of operation. The first row may remain in an addition-only program.
ADDITION, COMPARISON, SELECT = "addition", "comparison", "select"
SHIFT, BITWISE = "shift", "bitwise"
STATE = "state update"  # read, and written, from one round of a loop to the next
INTEGER_PRODUCT, FOLDABLE = "integer product", "foldable constant"
MULTIPLICATION, UNKNOWN = "multiplication", "unknown"
FREE = (ADDITION, COMPARISON, SELECT, SHIFT, BITWISE, STATE)
REFUSED = (INTEGER_PRODUCT, FOLDABLE, MULTIPLICATION, UNKNOWN)


@dataclass
class Site:
    """One equation on its way through a rule.

    charge(kind, count, *operands, why): `count` operations on these operands (their
    positions; all if none is given). Returns which operation of the report this is, for
    charge.advise(which, text); charge.place says where we are.
    """

    eqn: Any
    ins: list[Value]
    allow: Sequence[str]
    charge: Any

    @property
    def name(self) -> str:
        return self.eqn.primitive.name

    @property
    def out(self):
        return self.eqn.outvars[0].aval

    @property
    def size(self) -> int:
        return math.prod(self.out.shape)

    def aval(self, i: int):
        return self.eqn.invars[i].aval

    def result(self, alphabet: Alphabet, **known) -> Value:
        """Of data if an operand is; out of no one's weights, unless `known` says."""
        alphabet = domain.fit(alphabet, self.out.dtype)
        data = any(v.data for v in self.ins)
        known = {"factors": domain.merged(*self.ins)} | known
        return Value(alphabet, data, **known)


Rule = Callable[[Site], Value | list[Value]]


# ---- moving entries about, and changing what they are held in


def _move(site: Site) -> list[Value]:
    return list(site.ins) if len(site.eqn.outvars) > 1 else [site.ins[0]]


def _move_all(site: Site) -> list[Value]:
    return [site.ins[0]] * len(site.eqn.outvars)


def _join(site: Site) -> Value:
    """Stacking, concatenation, padding: the input beside zeros is the input still."""
    total = site.ins[0]
    for value in site.ins[1:]:
        total = domain.join_values(total, value)
    names = {value.input for value in site.ins if not _zero(value)}
    return replace(total, input=names.pop() if len(names) == 1 else None)


def _zero(value: Value) -> bool:
    return value.alphabet.zero and not value.data


def _indexed(which: Callable[[Site], Sequence[int]], join: bool = False) -> Rule:
    """Movement by indices; by indices that are data it is a look-up in a table."""

    def rule(site: Site) -> Value:
        indices = which(site)
        if any(site.ins[i].data for i in indices):
            site.charge(
                MULTIPLICATION, site.size, why="look-up by data: a table of products"
            )
            return site.result(domain.of_dtype(site.out.dtype), factors=())
        kept = site.ins[0]
        if join:
            kept = domain.join_values(kept, site.ins[_UPDATES[site.name]])
        return _filled(site, kept) if site.name == "gather" else kept

    return rule


def _filled(site: Site, kept: Value) -> Value:
    """What is out of bounds is read as a stated number, else as NaN or an extreme."""
    if "FILL" not in str(site.eqn.params.get("mode", "")).upper():
        return kept
    fill = site.eqn.params.get("fill_value")
    if fill is not None:
        filled = kept.of(domain.join(kept.alphabet, domain.constant(fill)))
        return filled if fill else replace(filled, input=kept.input)
    if jnp.issubdtype(site.out.dtype, jnp.inexact):
        return kept
    return kept.of(domain.of_dtype(site.out.dtype))


_UPDATES = {"dynamic_update_slice": 1, "scatter": 2, "scatter-add": 2}


def _scatter_add(site: Site) -> Value:
    moved = _indexed(lambda s: [1], join=True)(site)
    site.charge(ADDITION, math.prod(site.aval(2).shape), 0, 2)
    alphabet = Alphabet(integer=moved.alphabet.integer)
    return site.result(alphabet, factors=moved.factors)


def _convert(site: Site) -> Value:
    value, old, new = site.ins[0], site.aval(0).dtype, site.out.dtype
    if old == new:
        return value
    if new == jnp.bool_:
        if not value.alphabet.binary:
            site.charge(COMPARISON, site.size)
        decided = _is_integer(old) and _decided(value.alphabet)
        return site.result(decided or BINARY, factors=())
    if _is_integer(new):
        if not value.alphabet.integer:
            site.charge(BITWISE, site.size)
        alphabet = domain.fit(domain.rounded(value.alphabet), new)
        same = alphabet == value.alphabet
        return value if same else value.of(alphabet)
    return replace(value, alphabet=domain.fit(value.alphabet, new))


def _reduce_precision(site: Site) -> Value:
    """Rounds by the bits of a float, of which nothing is known here."""
    (a,) = site.ins
    if a.alphabet.ternary:
        return a
    site.charge(BITWISE, site.size)
    return site.result(REAL, weights=a.weights)


def _is_integer(dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.integer)


def _decided(a: Alphabet) -> Alphabet:
    """[a != 0]."""
    if a.constant:
        return domain.constant(bool(a.lo))
    return domain.ONE if a.lo > 0 or a.hi < 0 else BINARY


def _iota(site: Site) -> Value:
    last = site.out.shape[site.eqn.params["dimension"]] - 1
    return site.result(Alphabet(0, max(last, 0), integer=True))


def _bitcast(site: Site) -> Value:
    why = "reads the bits of a number as another's"
    site.charge(UNKNOWN, max(site.size, 1), why=why)
    return site.result(domain.of_dtype(site.out.dtype), factors=())


# ---- sums


def _affine(a: Value, b: Value) -> str | None:
    """The weights that a + b is affine in, if there is one place."""
    if not a.data or not b.data:
        return (a if a.data else b).weights
    return a.weights if a.weights == b.weights else None


def _add(site: Site) -> Value:
    a, b = site.ins
    x, y = a.alphabet, b.alphabet
    if site.name == "sub":
        y = domain.negative(y)
    alphabet = domain.add(x, y)
    if _zero(a) or _zero(b):
        if site.name != "sub" or _zero(b):
            return a if _zero(b) else b
        site.charge(BITWISE, site.size)
    elif alphabet.ternary and alphabet.integer:  # of spikes: the bits of another spike
        site.charge(BITWISE, site.size)
    else:
        site.charge(ADDITION, site.size)
    return site.result(alphabet, weights=_affine(a, b))


def _negate(site: Site) -> Value:
    site.charge(BITWISE, site.size)
    (a,) = site.ins
    return site.result(domain.negative(a.alphabet), weights=a.weights)


def _reduce_sum(site: Site) -> Value:
    (a,) = site.ins
    before = math.prod(site.aval(0).shape)
    count = before // max(site.size, 1)
    if count > 1:
        site.charge(ADDITION, before)
    return site.result(_sum(site, a.alphabet, count), weights=a.weights)


def _sum(site: Site, a: Alphabet, count: int) -> Alphabet:
    """Of `count` entries, in an order that is not known: rounding may differ."""
    total = domain.sum_of(a, count)
    loose = total.constant and not a.integer and count > 1
    return REAL if loose and not _is_integer(site.out.dtype) else total


def _cumulative_sum(site: Site) -> Value:
    (a,) = site.ins
    count = site.out.shape[site.eqn.params["axis"]]
    site.charge(ADDITION, site.size)
    return site.result(domain.sum_up_to(a.alphabet, count), weights=a.weights)


def _window_sum(site: Site) -> Value:
    (a,) = site.ins
    count = math.prod(site.eqn.params["window_dimensions"])
    site.charge(ADDITION, site.size * count)
    return site.result(domain.sum_up_to(a.alphabet, count), weights=a.weights)


# ---- products


def judge(
    a: Value, b: Value, allow: Sequence[str], summed: bool
) -> tuple[str | None, str, bool]:
    """(kind, why, allowed) of a product of two; kind None is no operation at all."""
    x, y = a.alphabet, b.alphabet
    if x.zero or y.zero:
        return None, "", False
    for one in (x, y):
        if one.one and not summed:
            return None, "", False
        if one.constant and one.lo == -1 and not summed:
            return BITWISE, "", False
    constant = None if a.data and b.data else (b if a.data else a).alphabet
    if constant is not None and not summed and not constant.power:
        if "input" in allow and (a.input or b.input):
            return MULTIPLICATION, _untouched(a, b), True
        what = f"{constant}" if constant.constant else "parameters"
        if a.state or b.state:
            return FOLDABLE, f"what a loop carries, times {what}", False
        return FOLDABLE, f"times {what}, which could be folded", False
    if x.ternary or y.ternary:
        return (ADDITION if summed else SELECT), "", False
    if x.power or y.power:
        return SHIFT, "", False
    if "input" in allow and constant is not None and (a.input or b.input):
        return MULTIPLICATION, _untouched(a, b), True
    if x.integer or y.integer:
        whole = x if x.integer else y
        return INTEGER_PRODUCT, f"times {whole}: expand it into binary slots", False
    why = "data times data" if constant is None else "data times parameters"
    return MULTIPLICATION, why, False


def _untouched(a: Value, b: Value) -> str:
    return f"{a.input or b.input}, untouched, times parameters"


def _multiply(site: Site) -> Value:
    a, b = site.ins
    alphabet = domain.times(a.alphabet, b.alphabet)
    if site.eqn.invars[0] is site.eqn.invars[1]:
        alphabet = domain.maximum(alphabet, domain.ZERO)
    return _scaled(site, a, b, alphabet)


def _scaled(site: Site, a: Value, b: Value, alphabet: Alphabet) -> Value:
    kind, why, allowed = judge(a, b, site.allow, summed=False)
    factors = domain.merged(a, b)
    if kind is None and not a.data and not b.data:
        site.charge(FOLDABLE, site.size)
    elif kind is not None:
        upstream = a.weights or b.weights
        index = site.charge(kind, site.size, why=why, allowed=allowed)
        if kind == FOLDABLE and index is not None:
            if a.state or b.state:
                site.charge.advise(index, "a state's decay folds nowhere: make it ±2^k")
            elif upstream:
                site.charge.advise(index, f"fold it into the weights of {upstream}")
            else:
                factors += (index,)
    elif a.alphabet.one and not a.data or b.alphabet.one and not b.data:
        return b if a.alphabet.one and not a.data else a
    weights = None if a.data and b.data else (a if a.data else b).weights
    return site.result(alphabet, weights=weights, factors=factors)


def _divide(site: Site) -> Value:
    a, b = site.ins
    x, y = a.alphabet, b.alphabet
    integer = _is_integer(site.out.dtype)
    if y.constant and y.lo:
        inverse = domain.constant(1 / y.lo)
        quotient = domain.times(x, inverse)
        if x.constant:
            quotient = domain.constant(x.lo / y.lo)
        quotient = domain.rounded(quotient) if integer else quotient
        if integer and not y.power:
            site.charge(MULTIPLICATION, site.size, why=f"integer division by {y}")
            return site.result(quotient)
        return _scaled(site, a, replace(b, alphabet=inverse), quotient)
    if y.power and not integer:
        site.charge(SHIFT, site.size)
        return site.result(Alphabet(power=x.power))
    if not b.data and not integer:
        return _scaled(site, a, replace(b, alphabet=REAL), REAL)
    site.charge(MULTIPLICATION, site.size, why="division by data")
    return site.result(domain.of_dtype(site.out.dtype))


def _contract(site: Site, count: int, terms: int, padded: bool = False) -> Value:
    """Sums of `terms` products, or fewer where `padded`; `count` products in all."""
    a, b = site.ins[:2]
    kind, why, allowed = judge(a, b, site.allow, summed=True)
    if kind is not None:
        site.charge(kind, count, 0, 1, why=why, allowed=allowed)
        if kind != ADDITION:
            site.charge(ADDITION, count, 0, 1, of=kind)
    product = domain.times(a.alphabet, b.alphabet)
    if padded:
        alphabet = domain.sum_up_to(product, terms)
    else:
        alphabet = _sum(site, product, terms)
    if not (a.data and b.data):
        for index in domain.merged(a, b):
            site.charge.advise(
                index, f"fold it into the weights of {site.charge.place}"
            )
        return site.result(alphabet, weights=site.charge.place, factors=())
    return site.result(alphabet)


def _dot(site: Site) -> Value:
    (contract, _), _ = site.eqn.params["dimension_numbers"]
    terms = math.prod(site.aval(0).shape[i] for i in contract)
    return _contract(site, site.size * terms, terms)


def taps(eqn) -> list[list[int]]:
    """For each spatial axis of a convolution: taps inside the image, per output."""
    return [inside.sum(1).tolist() for _, inside in _positions(eqn)]


def reach(eqn) -> list[list[int]]:
    """For each spatial axis of a convolution: outputs and taps that read an input."""
    found = []
    for spatial, (at, inside) in enumerate(_positions(eqn)):
        i = eqn.params["dimension_numbers"].lhs_spec[2 + spatial]
        length = eqn.invars[0].aval.shape[i]
        found.append(np.bincount(at[inside], minlength=length).tolist())
    return found


def _positions(eqn):
    """For each spatial axis (input position, is it in the image), [outputs, taps]."""
    p, (lhs, rhs) = eqn.params, (eqn.invars[0].aval.shape, eqn.invars[1].aval.shape)
    numbers, out = p["dimension_numbers"], eqn.outvars[0].aval.shape
    for axis, (i, k, o) in enumerate(
        zip(
            numbers.lhs_spec[2:],
            numbers.rhs_spec[2:],
            numbers.out_spec[2:],
            strict=True,
        )
    ):
        at = (
            np.arange(out[o])[:, None] * p["window_strides"][axis]
            + np.arange(rhs[k])[None] * p["rhs_dilation"][axis]
            - p["padding"][axis][0]
        )
        step = p["lhs_dilation"][axis]
        inside = (at >= 0) & (at <= (lhs[i] - 1) * step) & (at % step == 0)
        yield at // step, inside


def _convolve(site: Site) -> Value:
    p = site.eqn.params
    numbers, kernel = p["dimension_numbers"], site.aval(1).shape
    channels = kernel[numbers.rhs_spec[1]]  # of one group
    positions = math.prod(site.out.shape[i] for i in numbers.out_spec[2:])
    inside = math.prod(map(sum, taps(site.eqn)))
    count = site.size // max(positions, 1) * inside * channels
    terms = channels * math.prod(kernel[i] for i in numbers.rhs_spec[2:])
    return _contract(site, count, terms, padded=True)


def _power(site: Site) -> Value:
    """x ** y for an integer y that the program states."""
    (a,), y = site.ins, site.eqn.params.get("y", 2)
    x = a.alphabet
    if y == 1:
        return a
    if x.ternary and y > 0:
        site.charge(SELECT, site.size)
        return site.result(domain.magnitude(x) if y % 2 == 0 else x)
    if x.power:
        site.charge(SHIFT, site.size)
        return site.result(Alphabet(power=True))
    site.charge(MULTIPLICATION, site.size, why=f"power {y} of data")
    low = 0.0 if y % 2 == 0 else -domain.INF
    return site.result(Alphabet(low, integer=x.integer and y >= 0))


def _two_to(site: Site) -> Value:
    """2^n is a shift of 1 where n is an integer."""
    base = site.ins[0].alphabet if site.name == "pow" else Alphabet(2, 2)
    n = site.ins[-1].alphabet
    if base.constant and base.lo == 2 and not site.ins[0].data or site.name == "exp2":
        if n.integer:
            site.charge(SHIFT, site.size)
            return site.result(domain.two_to(n), factors=())
    return _nonlinear(site)


def _nonlinear(site: Site) -> Value:
    site.charge(MULTIPLICATION, site.size, why=f"{site.name} needs multiplications")
    low = 0.0 if site.name in ("exp", "exp2", "sqrt", "rsqrt", "logistic") else None
    alphabet = REAL if low is None else Alphabet(lo=low)
    return site.result(alphabet, factors=())


def _reduce_product(site: Site) -> Value:
    (a,) = site.ins
    x, before = a.alphabet, math.prod(site.aval(0).shape)
    if x.ternary:
        site.charge(SELECT, before)
        return site.result(BINARY if x.binary else domain.TERNARY)
    why = f"{site.name} of data"
    site.charge(SHIFT if x.power else MULTIPLICATION, before, why=why)
    return site.result(Alphabet(power=x.power, integer=x.integer and not x.power))


# ---- comparisons, choices, bits


def _compare(site: Site) -> Value:
    a, b = site.ins
    known = None
    if not jnp.issubdtype(site.aval(0).dtype, jnp.inexact):  # whose rounding decides
        known = _known(site.name, a.alphabet, b.alphabet)
    bits = a.alphabet.ternary and b.alphabet.ternary  # one of them says it already
    site.charge(BITWISE if bits else COMPARISON, site.size)
    for index in domain.merged(a, b):
        site.charge.advise(index, f"fold it into the threshold at {site.charge.place}")
    return site.result(BINARY if known is None else known, factors=())


def _known(name: str, a: Alphabet, b: Alphabet) -> Alphabet | None:
    """The outcome, where the intervals decide it."""
    if name in ("ge", "gt"):
        a, b, name = b, a, {"ge": "le", "gt": "lt"}[name]
    if name == "lt" and (a.hi < b.lo or a.lo >= b.hi):
        return domain.constant(a.hi < b.lo)
    if name == "le" and (a.hi <= b.lo or a.lo > b.hi):
        return domain.constant(a.hi <= b.lo)
    if name in ("eq", "ne"):
        if a.constant and b.constant and a.lo == b.lo:
            return domain.constant(name == "eq")
        if a.hi < b.lo or b.hi < a.lo:
            return domain.constant(name == "ne")
    return None


def _select(site: Site) -> Value:
    which, *cases = site.ins
    if which.alphabet.constant and not which.data:
        return cases[int(which.alphabet.lo)]
    total = cases[0]
    for case in cases[1:]:
        total = domain.join_values(total, case)
    site.charge(SELECT, site.size * (len(cases) - 1))
    return replace(total, data=total.data or which.data, input=None)


def _extreme(site: Site) -> Value:
    a, b = site.ins
    how = domain.maximum if site.name == "max" else domain.minimum
    site.charge(COMPARISON, site.size)
    return site.result(how(a.alphabet, b.alphabet))


def _clamp(site: Site) -> Value:
    low, x, high = (v.alphabet for v in site.ins)
    site.charge(COMPARISON, 2 * site.size)
    return site.result(domain.minimum(domain.maximum(x, low), high))


def _compare_all(site: Site) -> Value:
    """Of many one: the alphabet stays."""
    before = math.prod(site.aval(0).shape)
    if before > site.size or site.name.startswith("cum"):
        site.charge(COMPARISON, before)
    if not before:  # of none: an infinity, or an extreme integer
        return site.result(domain.of_dtype(site.out.dtype))
    return site.result(site.ins[0].alphabet)


def _window_extreme(site: Site) -> Value:
    p = site.eqn.params
    window = p["window_dimensions"]
    site.charge(COMPARISON, site.size * (math.prod(window) - 1))
    dilated = any(d != 1 for d in (*p["base_dilation"], *p["window_dilation"]))
    empty = any(max(pad) >= w for pad, w in zip(p["padding"], window, strict=True))
    # A window of padding alone has its infinity.
    return site.result(REAL if dilated or empty else site.ins[0].alphabet)


def _index_of(site: Site) -> Value:
    before = math.prod(site.aval(0).shape)
    site.charge(COMPARISON, before)
    last = before // max(site.size, 1) - 1
    return site.result(Alphabet(0, max(last, 0), integer=True), factors=())


def _sign(site: Site) -> Value:
    a = site.ins[0].alphabet
    site.charge(COMPARISON, site.size)
    for index in site.ins[0].factors:
        site.charge.advise(index, f"fold it into the threshold at {site.charge.place}")
    low, high = (0 if a.lo >= 0 else -1), (0 if a.hi <= 0 else 1)
    return site.result(Alphabet(low, high, integer=True), factors=())


def _absolute(site: Site) -> Value:
    a = site.ins[0].alphabet
    if a.lo < 0:
        site.charge(SELECT, site.size)
    return site.result(domain.magnitude(a))


def _round(site: Site) -> Value:
    a = site.ins[0].alphabet
    if a.integer:
        return site.ins[0]
    site.charge(BITWISE, site.size)
    return site.result(domain.rounded(a))


def _finite(site: Site) -> Value:
    site.charge(COMPARISON, site.size)
    return site.result(BINARY, factors=())


def _logic(site: Site) -> Value:
    site.charge(BITWISE, site.size)
    alphabets = [v.alphabet for v in site.ins]
    if site.out.dtype == jnp.bool_:
        return site.result(BINARY, factors=())
    if site.name == "and":
        tops = [a.hi for a in alphabets if a.lo >= 0]
        if tops:
            return site.result(Alphabet(0, min(tops), integer=True), factors=())
    elif site.name in ("or", "xor") and all(a.lo >= 0 for a in alphabets):
        top = max(a.hi for a in alphabets)
        top = 2.0 ** int(top).bit_length() - 1 if math.isfinite(top) else top
        return site.result(Alphabet(0, top, integer=True), factors=())
    return site.result(domain.INTEGER, factors=())


def _reduce_logic(site: Site) -> Value:
    site.charge(BITWISE, math.prod(site.aval(0).shape))
    return site.result(domain.of_dtype(site.out.dtype), factors=())


def _shift(site: Site) -> Value:
    a, by = (v.alphabet for v in site.ins)
    whole = domain.of_dtype(site.out.dtype)
    site.charge(SHIFT, site.size)
    if site.name == "shift_left" and a.power and not (by.constant and by.lo >= 0):
        # ±2^k, and 0 once shifted out.
        return site.result(replace(whole, power=True))
    if not by.constant or by.lo < 0:
        return site.result(domain.INTEGER)
    if site.name == "shift_left":
        return site.result(domain.times(a, domain.two_to(by)))
    if site.name == "shift_right_logical":
        moves_sign = a.lo < 0
    else:  # of an unsigned number, too, the first bit is taken for a sign
        moves_sign = whole.lo == 0 and a.hi > whole.hi / 2
    if moves_sign:
        return site.result(whole)
    down = 2.0**by.lo
    return site.result(
        Alphabet(math.floor(a.lo / down), math.floor(a.hi / down), integer=True)
        if math.isfinite(a.lo) and math.isfinite(a.hi)
        else domain.INTEGER
    )


def _remainder(site: Site) -> Value:
    x, y = (v.alphabet for v in site.ins)
    if y.constant and y.power and y.integer and y.lo and x.integer:
        site.charge(BITWISE, site.size)
        top = abs(y.lo) - 1
        low = 0 if x.lo >= 0 else -top
        return site.result(Alphabet(low, top, integer=True), factors=())
    return _nonlinear(site)


MOVES = """reshape tile transpose broadcast_in_dim squeeze slice rev copy name
    stop_gradient optimization_barrier sharding_constraint device_put
    reshard pvary""".split()
NONLINEAR = """exp exp2 expm1 log log1p sqrt rsqrt cbrt tanh tan sin cos asin acos atan
    sinh cosh asinh acosh atanh atan2 logistic erf erfc erf_inv lgamma digamma
    cumlogsumexp""".split()

RULES: dict[str, Rule] = (
    {name: _move for name in MOVES}
    | {name: _nonlinear for name in NONLINEAR}
    | {name: _compare for name in ("eq", "ne", "lt", "le", "gt", "ge")}
    | {name: _logic for name in ("and", "or", "xor", "not")}
    | {name: _reduce_logic for name in ("reduce_and", "reduce_or", "reduce_xor")}
    | {name: _round for name in ("floor", "ceil", "round")}
    | {name: _compare_all for name in ("reduce_max", "reduce_min", "cummax", "cummin")}
    | {name: _window_extreme for name in ("reduce_window_max", "reduce_window_min")}
    | {name: _reduce_product for name in ("reduce_prod", "cumprod")}
    | {
        name: _shift
        for name in ("shift_left", "shift_right_logical", "shift_right_arithmetic")
    }
    | {
        "split": _move_all,
        "unstack": _move_all,
        "stack": _join,
        "concatenate": _join,
        "pad": _join,
        "gather": _indexed(lambda s: [1]),
        "dynamic_slice": _indexed(lambda s: range(1, len(s.ins))),
        "dynamic_update_slice": _indexed(lambda s: range(2, len(s.ins)), join=True),
        "scatter": _indexed(lambda s: [1], join=True),
        "scatter-add": _scatter_add,
        "convert_element_type": _convert,
        "bitcast_convert_type": _bitcast,
        "reduce_precision": _reduce_precision,
        "iota": _iota,
        "add": _add,
        "add_any": _add,
        "sub": _add,
        "neg": _negate,
        "reduce_sum": _reduce_sum,
        "cumsum": _cumulative_sum,
        "reduce_window_sum": _window_sum,
        "mul": _multiply,
        "div": _divide,
        "rem": _remainder,
        "dot_general": _dot,
        "conv_general_dilated": _convolve,
        "integer_pow": _power,
        "square": _power,
        "exp2": _two_to,
        "pow": _two_to,
        "max": _extreme,
        "min": _extreme,
        "clamp": _clamp,
        "select_n": _select,
        "argmax": _index_of,
        "argmin": _index_of,
        "sign": _sign,
        "abs": _absolute,
        "is_finite": _finite,
    }
)


# Without a rule, and yet the same at every call if the operands are; nothing else is
# taken for a constant because its operands are.
PURE = """sort top_k fft cholesky lu qr eigh svd triangular_solve custom_linear_solve
    population_count clz
    nextafter reduce reduce_window select_and_scatter select_and_scatter_add
    select_and_gather_add scatter scatter-add scatter_add scatter_mul scatter_min
    scatter_max bessel_i0e bessel_i1e igamma igammac polygamma zeta
    regularized_incomplete_beta complex real imag conj random_bits random_seed
    random_split random_fold_in random_wrap random_unwrap random_gamma threefry2x32
    rng_bit_generator""".split()


def apply(site: Site) -> list[Value]:
    """What is known of the results of a primitive that is no call of a program."""
    rule, why = RULES.get(site.name), None
    if rule is None:
        why = "no rule for this primitive"
    elif _complex(site) and site.name not in MOVES:
        why = "no rule for complex numbers"
    elif _programs(site) and not _is_scatter_add(site):
        why = "runs a program that its rule does not read"
    if why is not None:
        return _unknown(site, why)
    result = rule(site)
    return result if isinstance(result, list) else [result]


def _unknown(site: Site, why: str) -> list[Value]:
    data = site.name not in PURE or any(v.data for v in site.ins)
    count = max([1, *map(_size, site.eqn.outvars)])
    site.charge(UNKNOWN, count, why=why, force=data)
    return [
        Value(domain.of_dtype(getattr(v.aval, "dtype", None)), data)
        for v in site.eqn.outvars
    ]


def _programs(site: Site) -> list:
    return list(jaxprs_in_params(site.eqn.params))


def _is_scatter_add(site: Site) -> bool:
    """That of jnp's .at[].add: its program is one sum of its two arguments."""
    if site.name not in ("scatter-add", "scatter_add"):
        return False
    (program,) = _programs(site)
    jaxpr = getattr(program, "jaxpr", program)
    if len(jaxpr.eqns) != 1 or jaxpr.eqns[0].primitive.name not in ("add", "add_any"):
        return False
    eqn = jaxpr.eqns[0]
    return set(eqn.invars) == set(jaxpr.invars) and eqn.outvars == list(jaxpr.outvars)


def _size(var) -> int:
    return math.prod(getattr(var.aval, "shape", ()))


def _complex(site: Site) -> bool:
    avals = [v.aval for v in (*site.eqn.invars, *site.eqn.outvars)]
    return any(
        jnp.issubdtype(getattr(a, "dtype", bool), jnp.complexfloating) for a in avals
    )
