"""Comparisons, choices, bits."""

import math
from dataclasses import replace

import jax.numpy as jnp

from a2os2a_jax.analysis.audit import domain
from a2os2a_jax.analysis.audit.domain import BINARY, REAL, Alphabet, Value
from a2os2a_jax.analysis.audit.rules import products
from a2os2a_jax.analysis.audit.rules.site import (
    BITWISE,
    COMPARISON,
    SELECT,
    SHIFT,
    Site,
)


def compare(site: Site) -> Value:
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


def select(site: Site) -> Value:
    which, *cases = site.ins
    if which.alphabet.constant and not which.data:
        return cases[int(which.alphabet.lo)]
    total = cases[0]
    for case in cases[1:]:
        total = domain.join_values(total, case)
    site.charge(SELECT, site.size * (len(cases) - 1))
    return replace(total, data=total.data or which.data, input=None)


def extreme(site: Site) -> Value:
    a, b = site.ins
    how = domain.maximum if site.name == "max" else domain.minimum
    site.charge(COMPARISON, site.size)
    return site.result(how(a.alphabet, b.alphabet))


def clamp(site: Site) -> Value:
    low, x, high = (v.alphabet for v in site.ins)
    site.charge(COMPARISON, 2 * site.size)
    return site.result(domain.minimum(domain.maximum(x, low), high))


def compare_all(site: Site) -> Value:
    """Of many one: the alphabet stays."""
    before = math.prod(site.aval(0).shape)
    if before > site.size or site.name.startswith("cum"):
        site.charge(COMPARISON, before)
    if not before:  # of none: an infinity, or an extreme integer
        return site.result(domain.of_dtype(site.out.dtype))
    return site.result(site.ins[0].alphabet)


def window_extreme(site: Site) -> Value:
    p = site.eqn.params
    window = p["window_dimensions"]
    site.charge(COMPARISON, site.size * (math.prod(window) - 1))
    dilated = any(d != 1 for d in (*p["base_dilation"], *p["window_dilation"]))
    empty = any(max(pad) >= w for pad, w in zip(p["padding"], window, strict=True))
    # A window of padding alone has its infinity.
    return site.result(REAL if dilated or empty else site.ins[0].alphabet)


def index_of(site: Site) -> Value:
    before = math.prod(site.aval(0).shape)
    site.charge(COMPARISON, before)
    last = before // max(site.size, 1) - 1
    return site.result(Alphabet(0, max(last, 0), integer=True), factors=())


def sign(site: Site) -> Value:
    a = site.ins[0].alphabet
    site.charge(COMPARISON, site.size)
    for index in site.ins[0].factors:
        site.charge.advise(index, f"fold it into the threshold at {site.charge.place}")
    low, high = (0 if a.lo >= 0 else -1), (0 if a.hi <= 0 else 1)
    return site.result(Alphabet(low, high, integer=True), factors=())


def absolute(site: Site) -> Value:
    a = site.ins[0].alphabet
    if a.lo < 0:
        site.charge(SELECT, site.size)
    return site.result(domain.magnitude(a))


def round_off(site: Site) -> Value:
    a = site.ins[0].alphabet
    if a.integer:
        return site.ins[0]
    site.charge(BITWISE, site.size)
    return site.result(domain.rounded(a))


def finite(site: Site) -> Value:
    site.charge(COMPARISON, site.size)
    return site.result(BINARY, factors=())


def logic(site: Site) -> Value:
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


def reduce_logic(site: Site) -> Value:
    site.charge(BITWISE, math.prod(site.aval(0).shape))
    return site.result(domain.of_dtype(site.out.dtype), factors=())


def shift(site: Site) -> Value:
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


def remainder(site: Site) -> Value:
    x, y = (v.alphabet for v in site.ins)
    if y.constant and y.power and y.integer and y.lo and x.integer:
        site.charge(BITWISE, site.size)
        top = abs(y.lo) - 1
        low = 0 if x.lo >= 0 else -top
        return site.result(Alphabet(low, top, integer=True), factors=())
    return products.nonlinear(site)
