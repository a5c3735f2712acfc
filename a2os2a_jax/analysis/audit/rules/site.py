"""What a rule is given: one equation, and a place to charge operations to."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from a2os2a_jax.analysis.audit import domain
from a2os2a_jax.analysis.audit.domain import Alphabet, Value

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


def is_zero(value: Value) -> bool:
    return value.alphabet.zero and not value.data


def is_integer(dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.integer)
