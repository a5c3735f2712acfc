"""Products, and what needs them."""

import math
from collections.abc import Sequence
from dataclasses import replace

from a2os2a_jax.analysis.audit import domain
from a2os2a_jax.analysis.audit.domain import BINARY, REAL, Alphabet, Value
from a2os2a_jax.analysis.audit.rules import sums, windows
from a2os2a_jax.analysis.audit.rules.site import (
    ADDITION,
    BITWISE,
    FOLDABLE,
    INTEGER_PRODUCT,
    MULTIPLICATION,
    SELECT,
    SHIFT,
    Site,
    is_integer,
)


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


def multiply(site: Site) -> Value:
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


def divide(site: Site) -> Value:
    a, b = site.ins
    x, y = a.alphabet, b.alphabet
    integer = is_integer(site.out.dtype)
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
        alphabet = sums.sum_of(site, product, terms)
    if not (a.data and b.data):
        for index in domain.merged(a, b):
            site.charge.advise(
                index, f"fold it into the weights of {site.charge.place}"
            )
        return site.result(alphabet, weights=site.charge.place, factors=())
    return site.result(alphabet)


def dot(site: Site) -> Value:
    (contract, _), _ = site.eqn.params["dimension_numbers"]
    terms = math.prod(site.aval(0).shape[i] for i in contract)
    return _contract(site, site.size * terms, terms)


def convolve(site: Site) -> Value:
    p = site.eqn.params
    numbers, kernel = p["dimension_numbers"], site.aval(1).shape
    channels = kernel[numbers.rhs_spec[1]]  # of one group
    positions = math.prod(site.out.shape[i] for i in numbers.out_spec[2:])
    inside = math.prod(map(sum, windows.taps(site.eqn)))
    count = site.size // max(positions, 1) * inside * channels
    terms = channels * math.prod(kernel[i] for i in numbers.rhs_spec[2:])
    return _contract(site, count, terms, padded=True)


def power(site: Site) -> Value:
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


def two_to(site: Site) -> Value:
    """2^n is a shift of 1 where n is an integer."""
    base = site.ins[0].alphabet if site.name == "pow" else Alphabet(2, 2)
    n = site.ins[-1].alphabet
    if base.constant and base.lo == 2 and not site.ins[0].data or site.name == "exp2":
        if n.integer:
            site.charge(SHIFT, site.size)
            return site.result(domain.two_to(n), factors=())
    return nonlinear(site)


def nonlinear(site: Site) -> Value:
    site.charge(MULTIPLICATION, site.size, why=f"{site.name} needs multiplications")
    low = 0.0 if site.name in ("exp", "exp2", "sqrt", "rsqrt", "logistic") else None
    alphabet = REAL if low is None else Alphabet(lo=low)
    return site.result(alphabet, factors=())


def reduce_product(site: Site) -> Value:
    (a,) = site.ins
    x, before = a.alphabet, math.prod(site.aval(0).shape)
    if x.ternary:
        site.charge(SELECT, before)
        return site.result(BINARY if x.binary else domain.TERNARY)
    why = f"{site.name} of data"
    site.charge(SHIFT if x.power else MULTIPLICATION, before, why=why)
    return site.result(Alphabet(power=x.power, integer=x.integer and not x.power))
