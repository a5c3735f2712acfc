"""What is known of a value before it is computed: its alphabet, and where it is from.

One `Value` stands for a whole array. An alphabet is a set of numbers that all entries
are in, for every input: an interval [lo, hi], and whether all are integers, and whether
all are 0 or ± a power of two. {0, 1} is then the integers in [0, 1], {-1, 0, 1} those
in [-1, 1], zero is [0, 0]; `REAL` knows nothing. Reading is algebraic: a float is the
number it stands for. Constants are rounded as their dtype does it; of what depends on
data rounding, overflow and NaN are not looked at, and no branch or loop is decided by
floats. Integers may wrap around, so what leaves the range of its dtype may be anything
in it.
"""

import math
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

INF = math.inf
_EXACT = 2.0**53  # integers below have a float of their own; bounds beyond are infinite


@dataclass(frozen=True)
class Alphabet:
    """All numbers x with lo <= x <= hi; `integer` and `power` narrow it further.

    power: every number is 0 or ±2^k with k an integer.
    """

    lo: float = -INF
    hi: float = INF
    integer: bool = False
    power: bool = False

    def __post_init__(self):
        if self.integer and -1 <= self.lo and self.hi <= 1:
            object.__setattr__(self, "power", True)
        elif self.lo == self.hi and math.isfinite(self.lo):
            object.__setattr__(self, "integer", float(self.lo).is_integer())
            object.__setattr__(self, "power", abs(math.frexp(self.lo)[0]) in (0, 0.5))

    @property
    def zero(self) -> bool:
        return self.lo == self.hi == 0

    @property
    def one(self) -> bool:
        return self.lo == self.hi == 1

    @property
    def constant(self) -> bool:
        """One number, the same everywhere."""
        return self.lo == self.hi and math.isfinite(self.lo)

    @property
    def binary(self) -> bool:
        """In {0, 1}."""
        return self.integer and self.lo >= 0 and self.hi <= 1

    @property
    def ternary(self) -> bool:
        """In {-1, 0, 1}: a product with it is no more than a sign and a choice."""
        return self.integer and self.lo >= -1 and self.hi <= 1

    def __str__(self) -> str:
        if self.constant:
            return f"{self.lo:.6g}"
        if self.binary:
            return "{0, 1}"
        if self.ternary:
            return "{-1, 0, 1}"
        if self.power:
            return "±2^k"
        if self.integer:
            if self.lo == -INF and self.hi == INF:
                return "integer"
            return f"integer [{self.lo:.6g}, {self.hi:.6g}]"
        return "real >= 0" if self.lo >= 0 else "real"


REAL = Alphabet()
ZERO = Alphabet(0, 0)
ONE = Alphabet(1, 1)
BINARY = Alphabet(0, 1, integer=True)
TERNARY = Alphabet(-1, 1, integer=True)
INTEGER = Alphabet(integer=True)


@dataclass(frozen=True)
class Value:
    """What is known of an array.

    alphabet: of its entries.
    data: it depends on data; else on parameters and constants alone, so that it can be
      computed once, ahead of any input. One number, always the same, is no data.
    input: the name of the argument that it is, unchanged but for where entries lie.
    weights: place of the product whose weights it is an affine function of: there a
      constant factor could be folded into.
    factors: constant factors that wait for a place, further on, to take them.
    state: what a loop carries from one round to the next.
    """

    alphabet: Alphabet = REAL
    data: bool = True
    input: str | None = None
    weights: str | None = None
    factors: tuple[int, ...] = ()
    state: bool = False

    def __post_init__(self):
        if self.data and self.alphabet.constant:
            object.__setattr__(self, "data", False)

    def of(self, alphabet: Alphabet) -> "Value":
        """Of another alphabet, and the untouched input no longer."""
        return replace(self, alphabet=alphabet, input=None)


def constant(array) -> Alphabet:
    """The alphabet of known numbers."""
    dtype = getattr(array, "dtype", None) or np.asarray(array).dtype
    if not is_number(dtype) or jnp.issubdtype(dtype, jnp.complexfloating):
        return REAL
    x = np.asarray(array)
    if x.size == 0:
        return ZERO
    if x.dtype.kind in "iub":
        return _constant_integers(x)
    x = x.astype(np.float64)  # bfloat16, int4 and the like, too
    if np.isnan(x).any():
        return REAL
    integer = bool(np.isfinite(x).all() and (x == np.round(x)).all())
    mantissa = np.abs(np.frexp(x)[0])
    power = bool(((mantissa == 0) | (mantissa == 0.5)).all())
    return Alphabet(float(x.min()), float(x.max()), integer, power)


def _constant_integers(x: np.ndarray) -> Alphabet:
    lo, hi = int(x.min()), int(x.max())
    if max(-lo, hi) < _EXACT:
        mantissa = np.abs(np.frexp(x.astype(np.float64))[0])
        power = bool(((mantissa == 0) | (mantissa == 0.5)).all())
        return Alphabet(float(lo), float(hi), integer=True, power=power)
    return Alphabet(*_bounds(lo, hi), integer=True)


def _bounds(lo: float, hi: float) -> tuple[float, float]:
    """(lo, hi), or infinity for what a float may have rounded towards the inside."""
    return (-INF if abs(lo) >= _EXACT else lo), (INF if abs(hi) >= _EXACT else hi)


def is_number(dtype) -> bool:
    """Of a real number, an integer or a truth value; not of a key or a token."""
    return dtype is not None and (
        jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
    )


def of_dtype(dtype) -> Alphabet:
    """All that an array of this dtype can hold."""
    if not is_number(dtype):
        return REAL
    dtype = jnp.dtype(dtype)
    if dtype == jnp.bool_:
        return BINARY
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        return Alphabet(*_bounds(int(info.min), int(info.max)), integer=True)
    return REAL


def fit(a: Alphabet, dtype) -> Alphabet:
    """`a` held by `dtype`: floats are rounded, integers out of its range wrap around.

    What one operation gives is then what it gives, bit for bit, where it is one number.
    """
    if jnp.issubdtype(dtype, jnp.floating):
        lo, hi = _rounded_to(a.lo, dtype), _rounded_to(a.hi, dtype)
        return a if (lo, hi) == (a.lo, a.hi) else Alphabet(lo, hi, a.integer, a.power)
    whole = of_dtype(dtype)
    exact = a.integer and max(-a.lo, a.hi) < _EXACT
    inside = exact and whole.lo <= a.lo and a.hi <= whole.hi
    return a if inside or not whole.integer else whole


def _rounded_to(x: float, dtype) -> float:
    if math.isinf(x) or x == int(x) and abs(x) <= 256:
        return x
    return float(np.asarray(x, np.float64).astype(dtype))


# ---- the lattice


def join(a: Alphabet, b: Alphabet) -> Alphabet:
    """Either."""
    return Alphabet(
        min(a.lo, b.lo),
        max(a.hi, b.hi),
        a.integer and b.integer,
        a.power and b.power,
    )


def widen(old: Alphabet, new: Alphabet) -> Alphabet:
    """`join`, where a bound that still moves goes to infinity: loops come to rest."""
    both = join(old, new)
    return replace(
        both,
        lo=both.lo if both.lo == old.lo else -INF,
        hi=both.hi if both.hi == old.hi else INF,
    )


def join_values(a: Value, b: Value, how=join) -> Value:
    """Either, or one of both chosen by what is no data."""
    return Value(
        how(a.alphabet, b.alphabet),
        a.data or b.data,
        a.input if a.input == b.input else None,
        a.weights if a.weights == b.weights else None,
        merged(a, b),
        a.state and b.state,
    )


def merged(*values: Value) -> tuple[int, ...]:
    """The waiting factors of all."""
    return tuple(dict.fromkeys(f for v in values for f in v.factors))


# ---- arithmetic on alphabets


def add(a: Alphabet, b: Alphabet) -> Alphabet:
    if a.zero or b.zero:
        return b if a.zero else a
    lo, hi = a.lo + b.lo, a.hi + b.hi
    lo, hi = (-INF if math.isnan(lo) else lo), (INF if math.isnan(hi) else hi)
    return Alphabet(*_bounds(lo, hi), a.integer and b.integer)


def negative(a: Alphabet) -> Alphabet:
    return Alphabet(-a.hi, -a.lo, a.integer, a.power)


def times(a: Alphabet, b: Alphabet) -> Alphabet:
    corners = [_product(x, y) for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    lo, hi = _bounds(min(corners), max(corners))
    return Alphabet(lo, hi, a.integer and b.integer, a.power and b.power)


def _product(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def sum_of(a: Alphabet, count: int) -> Alphabet:
    """A sum of `count` entries."""
    if count == 1 or a.zero:
        return a
    bounds = _bounds(_product(count, a.lo), _product(count, a.hi))
    return Alphabet(*bounds, a.integer)


def sum_up_to(a: Alphabet, count: int) -> Alphabet:
    """A sum of none to `count` entries."""
    return replace(join(ZERO, sum_of(a, count)), power=False)


def magnitude(a: Alphabet) -> Alphabet:
    hi = max(abs(a.lo), abs(a.hi))
    lo = 0.0 if a.lo <= 0 <= a.hi else min(abs(a.lo), abs(a.hi))
    return Alphabet(lo, hi, a.integer, a.power)


def maximum(a: Alphabet, b: Alphabet) -> Alphabet:
    both = join(a, b)
    return replace(both, lo=max(a.lo, b.lo), hi=max(a.hi, b.hi))


def minimum(a: Alphabet, b: Alphabet) -> Alphabet:
    both = join(a, b)
    return replace(both, lo=min(a.lo, b.lo), hi=min(a.hi, b.hi))


def rounded(a: Alphabet) -> Alphabet:
    """Floor, ceiling or nearest: within one of `a`."""
    if a.integer:
        return a
    lo = a.lo if math.isinf(a.lo) else math.floor(a.lo)
    hi = a.hi if math.isinf(a.hi) else math.ceil(a.hi)
    return Alphabet(lo, hi, integer=True)


def two_to(a: Alphabet) -> Alphabet:
    """2^n of integers n."""

    def exp2(x: float) -> float:
        return 0.0 if x < -1100 else INF if x > 1023 else math.ldexp(1.0, int(x))

    return Alphabet(exp2(a.lo), exp2(a.hi), a.lo >= 0, power=True)


def width(a: Alphabet, dtype) -> int:
    """Bits of one entry: 1 of {0, 1}, 2 of {-1, 0, 1}, else those of its dtype."""
    if a.binary:
        return 1
    if a.ternary:
        return 2
    dtype = jnp.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.integer):  # int4 takes a byte and has four bits
        return jnp.iinfo(dtype).bits
    return 8 * dtype.itemsize
