"""Sums and differences."""

import math

from a2os2a_jax.analysis.audit import domain
from a2os2a_jax.analysis.audit.domain import REAL, Alphabet, Value
from a2os2a_jax.analysis.audit.rules.site import (
    ADDITION,
    BITWISE,
    Site,
    is_integer,
    is_zero,
)


def _affine(a: Value, b: Value) -> str | None:
    """The weights that a + b is affine in, if there is one place."""
    if not a.data or not b.data:
        return (a if a.data else b).weights
    return a.weights if a.weights == b.weights else None


def add(site: Site) -> Value:
    a, b = site.ins
    x, y = a.alphabet, b.alphabet
    if site.name == "sub":
        y = domain.negative(y)
    alphabet = domain.add(x, y)
    if is_zero(a) or is_zero(b):
        if site.name != "sub" or is_zero(b):
            return a if is_zero(b) else b
        site.charge(BITWISE, site.size)
    elif alphabet.ternary and alphabet.integer:  # of spikes: the bits of another spike
        site.charge(BITWISE, site.size)
    else:
        site.charge(ADDITION, site.size)
    return site.result(alphabet, weights=_affine(a, b))


def negate(site: Site) -> Value:
    site.charge(BITWISE, site.size)
    (a,) = site.ins
    return site.result(domain.negative(a.alphabet), weights=a.weights)


def reduce_sum(site: Site) -> Value:
    (a,) = site.ins
    before = math.prod(site.aval(0).shape)
    count = before // max(site.size, 1)
    if count > 1:
        site.charge(ADDITION, before)
    return site.result(sum_of(site, a.alphabet, count), weights=a.weights)


def sum_of(site: Site, a: Alphabet, count: int) -> Alphabet:
    """Of `count` entries, in an order that is not known: rounding may differ."""
    total = domain.sum_of(a, count)
    loose = total.constant and not a.integer and count > 1
    return REAL if loose and not is_integer(site.out.dtype) else total


def cumulative_sum(site: Site) -> Value:
    (a,) = site.ins
    count = site.out.shape[site.eqn.params["axis"]]
    site.charge(ADDITION, site.size)
    return site.result(domain.sum_up_to(a.alphabet, count), weights=a.weights)


def window_sum(site: Site) -> Value:
    (a,) = site.ins
    count = math.prod(site.eqn.params["window_dimensions"])
    site.charge(ADDITION, site.size * count)
    return site.result(domain.sum_up_to(a.alphabet, count), weights=a.weights)
