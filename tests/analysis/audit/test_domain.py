"""Alphabets: what is known of constants, of sums and products, and where it stops."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.analysis.audit import domain
from a2os2a_jax.analysis.audit.domain import (
    BINARY,
    INF,
    INTEGER,
    ONE,
    REAL,
    TERNARY,
    ZERO,
    Alphabet,
    Value,
)

SOME = [
    ZERO,
    ONE,
    BINARY,
    TERNARY,
    INTEGER,
    REAL,
    Alphabet(-1, 0, integer=True),
    Alphabet(0, 5, integer=True),
    Alphabet(-4, 4, power=True),
    Alphabet(0.25, 2, power=True),
    Alphabet(1, 8, integer=True, power=True),
    Alphabet(-0.75, 1.5),
    Alphabet(0.375, 0.375),
    Alphabet(0, INF),
    Alphabet(-INF, -2, integer=True),
]


def members(a: Alphabet) -> list[float]:
    """Some numbers of an alphabet."""
    grid = [k / 8 for k in range(-48, 49)] + [-1024.0, 1000.0, 4096.0]
    return [x for x in grid if holds(a, x)]


def holds(a: Alphabet, x: float) -> bool:
    whole = not a.integer or x == round(x)
    power = not a.power or abs(math.frexp(x)[0]) in (0, 0.5)
    return a.lo <= x <= a.hi and whole and power


@pytest.mark.parametrize("a", SOME, ids=str)
def test_two_alphabets_make_one_that_holds_every_outcome(a):
    outcomes = {
        domain.add: lambda x, y: x + y,
        domain.times: lambda x, y: x * y,
        domain.maximum: max,
        domain.minimum: min,
    }
    for b in SOME:
        for how, of in outcomes.items():
            made = how(a, b)
            assert made == how(b, a)
            for x in members(a):
                for y in members(b):
                    assert holds(made, of(x, y)), (how.__name__, b, x, y, made)
        for both in (domain.join(a, b), domain.widen(a, b)):
            assert all(holds(both, x) for x in members(a) + members(b))


@pytest.mark.parametrize("a", SOME, ids=str)
def test_one_alphabet_makes_one_that_holds_every_outcome(a):
    for x in members(a):
        assert holds(domain.negative(a), -x)
        assert holds(domain.magnitude(a), abs(x))
        assert holds(domain.rounded(a), math.floor(x))
        assert holds(domain.rounded(a), math.ceil(x))
        for count in range(4):
            assert holds(domain.sum_of(a, count), count * x)
            assert all(
                holds(domain.sum_up_to(a, count), n * x) for n in range(count + 1)
            )
        if a.integer and abs(x) < 50:
            assert holds(domain.two_to(a), 2.0**x)
    assert domain.join(a, a) == domain.widen(a, a) == a


def test_widening_ends():
    a = ZERO
    for i in range(3):
        a = domain.widen(a, Alphabet(-i, i, integer=True))
    assert a == INTEGER == domain.widen(a, Alphabet(-9, 9, integer=True))
    assert domain.widen(BINARY, Alphabet(0, 2, integer=True)) == Alphabet(
        0, INF, integer=True
    )


def test_a_sum_of_none_to_three_ones_is_no_power_of_two():
    # 1 and 4 are, and 3, which is between them, is not.
    assert not domain.sum_up_to(ONE, 4).power
    assert not domain.add(Alphabet(1, 2, power=True), ONE).power
    assert domain.sum_up_to(ONE, 1) == BINARY


CONSTANTS = [
    (np.float32([0, 1, 1]), BINARY),
    (np.array([-1, 1], np.int64), TERNARY),
    (np.array([True, True]), ONE),
    (np.array([False]), ZERO),
    (jnp.array([0.5, -2, 0], jnp.bfloat16), Alphabet(-2, 0.5, power=True)),
    (jnp.array([3, -8], jnp.int4), Alphabet(-8, 3, integer=True)),
    (jnp.array([0.25, 3], jnp.float8_e4m3fn), Alphabet(0.25, 3)),
    (np.float64([1, INF]), Alphabet(1, INF)),
    (np.float64([-INF, 0]), Alphabet(-INF, 0)),
    (np.float32([1, np.nan]), REAL),
    (np.zeros((0, 3), np.float32), ZERO),
    (np.complex64([1j]), REAL),
    (2, Alphabet(2, 2)),
    (0.3, Alphabet(0.3, 0.3)),
    (True, ONE),
    (np.array([2**60], np.int64), INTEGER),
    (np.array([2**53 + 1], np.int64), INTEGER),  # as a float it is 2^53
    (np.array([2**64 - 1, 0], np.uint64), Alphabet(0, INF, integer=True)),
    (np.array([-(2**63)], np.int64), INTEGER),
    (np.float64([1e300, 1e300]), Alphabet(1e300, 1e300)),
]


@pytest.mark.parametrize("array, expected", CONSTANTS, ids=lambda x: repr(x)[:40])
def test_constants(array, expected):
    assert domain.constant(array) == expected


def test_constants_say_what_they_are():
    tenth, quarter = domain.constant(0.1), domain.constant(0.25)
    assert not tenth.power and quarter.power and not quarter.integer
    assert domain.constant(4.0).power and domain.constant(4.0).integer
    assert not domain.constant(6.0).power
    assert not domain.constant(np.float64([INF])).power


@pytest.mark.parametrize("dtype", ["int2", "int4", "int8", "uint8", "int32", "uint32"])
def test_what_leaves_its_dtype_may_be_anything_in_it(dtype):
    dtype = getattr(jnp, dtype)
    info = jnp.iinfo(dtype)
    whole = Alphabet(int(info.min), int(info.max), integer=True)
    assert domain.of_dtype(dtype) == whole
    assert domain.fit(domain.add(whole, ONE), dtype) == whole
    assert domain.fit(INTEGER, dtype) == whole
    assert domain.fit(REAL, dtype) == whole
    top = Alphabet(info.max, info.max)
    assert domain.fit(top, dtype) == top
    assert domain.fit(domain.add(top, ONE), dtype) == whole
    lowest = Alphabet(info.min, info.min)
    if info.min:  # there is no +128 among int8
        assert domain.fit(domain.negative(lowest), dtype) == whole
    assert domain.fit(domain.add(whole, ONE), jnp.float32).hi == info.max + 1


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_of_64_bits_the_bounds_are_not_trusted(dtype):
    # (2^60 + n) - 2^60 is n. In floats it is 0 for a small n.
    big, n = domain.constant(dtype(2**60)), Alphabet(0, 7, integer=True)
    back = domain.add(domain.add(big, n), domain.negative(big))
    assert all(holds(domain.fit(back, dtype), x) for x in range(8))
    top = domain.maximum(domain.of_dtype(dtype), ONE)
    wrapped = domain.fit(domain.add(top, ONE), dtype)
    assert holds(wrapped, float(np.iinfo(dtype).min))
    far = Alphabet(0, 1e30, integer=True)  # what a cast makes of 1e30 is not known
    assert holds(domain.fit(far, dtype), float(np.iinfo(dtype).min))
    exact = Alphabet(2**53 - 1, 2**53 - 1, integer=True)
    assert domain.add(exact, ONE).hi == INF


def test_no_power_leaves_the_floats():
    assert domain.two_to(Alphabet(0, 1050, integer=True)).hi == INF
    assert domain.two_to(Alphabet(-2000, 0, integer=True)).lo == 0
    assert domain.two_to(Alphabet(-3, 2, integer=True)) == Alphabet(
        0.125, 4, power=True
    )


def test_width_is_that_of_what_has_to_be_stored():
    assert domain.width(BINARY, jnp.float32) == 1
    assert domain.width(TERNARY, jnp.float32) == 2
    assert domain.width(INTEGER, jnp.int4) == 4
    assert domain.width(REAL, jnp.bfloat16) == 16


def test_one_number_always_the_same_is_no_data():
    assert not Value(ONE, data=True).data
    assert not Value(BINARY, data=True).of(ZERO).data
    assert Value(BINARY, data=True).data
    assert Value(domain.constant(np.float64([INF])), data=True).data


def test_two_values_are_the_input_only_if_both_are():
    a, b = Value(input="x"), Value(input="y")
    assert domain.join_values(a, a).input == "x"
    assert domain.join_values(a, b).input is None
    assert domain.join_values(a, Value(ZERO, False)).input is None
    assert domain.join_values(Value(REAL, False), a).data


def test_names():
    texts = [str(a) for a in (ZERO, BINARY, TERNARY, INTEGER, REAL)]
    assert texts == ["0", "{0, 1}", "{-1, 0, 1}", "integer", "real"]
    assert str(Alphabet(0, 5, integer=True)) == "integer [0, 5]"
    assert str(Alphabet(0, 4, power=True)) == "±2^k"
    assert str(Alphabet(0)) == "real >= 0"
