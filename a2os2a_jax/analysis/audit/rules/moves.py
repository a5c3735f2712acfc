"""Moving entries about, and changing what they are held in."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax.numpy as jnp

from a2os2a_jax.analysis.audit import domain
from a2os2a_jax.analysis.audit.domain import BINARY, REAL, Alphabet, Value
from a2os2a_jax.analysis.audit.rules.site import (
    ADDITION,
    BITWISE,
    COMPARISON,
    MULTIPLICATION,
    UNKNOWN,
    Rule,
    Site,
    is_integer,
    is_zero,
)


def move(site: Site) -> list[Value]:
    return list(site.ins) if len(site.eqn.outvars) > 1 else [site.ins[0]]


def move_all(site: Site) -> list[Value]:
    return [site.ins[0]] * len(site.eqn.outvars)


def join(site: Site) -> Value:
    """Stacking, concatenation, padding: the input beside zeros is the input still."""
    total = site.ins[0]
    for value in site.ins[1:]:
        total = domain.join_values(total, value)
    names = {value.input for value in site.ins if not is_zero(value)}
    return replace(total, input=names.pop() if len(names) == 1 else None)


def indexed(which: Callable[[Site], Sequence[int]], join: bool = False) -> Rule:
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


def scatter_add(site: Site) -> Value:
    moved = indexed(lambda s: [1], join=True)(site)
    site.charge(ADDITION, math.prod(site.aval(2).shape), 0, 2)
    alphabet = Alphabet(integer=moved.alphabet.integer)
    return site.result(alphabet, factors=moved.factors)


def convert(site: Site) -> Value:
    value, old, new = site.ins[0], site.aval(0).dtype, site.out.dtype
    if old == new:
        return value
    if new == jnp.bool_:
        if not value.alphabet.binary:
            site.charge(COMPARISON, site.size)
        decided = is_integer(old) and _decided(value.alphabet)
        return site.result(decided or BINARY, factors=())
    if is_integer(new):
        if not value.alphabet.integer:
            site.charge(BITWISE, site.size)
        alphabet = domain.fit(domain.rounded(value.alphabet), new)
        same = alphabet == value.alphabet
        return value if same else value.of(alphabet)
    return replace(value, alphabet=domain.fit(value.alphabet, new))


def reduce_precision(site: Site) -> Value:
    """Rounds by the bits of a float, of which nothing is known here."""
    (a,) = site.ins
    if a.alphabet.ternary:
        return a
    site.charge(BITWISE, site.size)
    return site.result(REAL, weights=a.weights)


def _decided(a: Alphabet) -> Alphabet:
    """[a != 0]."""
    if a.constant:
        return domain.constant(bool(a.lo))
    return domain.ONE if a.lo > 0 or a.hi < 0 else BINARY


def iota(site: Site) -> Value:
    last = site.out.shape[site.eqn.params["dimension"]] - 1
    return site.result(Alphabet(0, max(last, 0), integer=True))


def bitcast(site: Site) -> Value:
    why = "reads the bits of a number as another's"
    site.charge(UNKNOWN, max(site.size, 1), why=why)
    return site.result(domain.of_dtype(site.out.dtype), factors=())
