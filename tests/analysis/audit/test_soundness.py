"""Random programs on random numbers: nothing is found outside of what was claimed.

Numbers are dyadic, so that float64 is exact and a claim is either right or wrong. From
where a result is not exact (thirds, exponentials, infinities) nothing is checked on.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from a2os2a_jax.analysis.audit import domain
from a2os2a_jax.analysis.audit.domain import BINARY, INF, REAL, TERNARY, Alphabet, Value
from a2os2a_jax.analysis.audit.rules import MOVES, NONLINEAR, RULES
from a2os2a_jax.analysis.audit.walk import open_jaxpr, results

N = 4
SHAPE = (N, N)
FLOAT, INT, BYTE, BOOL = "float64", "int32", "uint8", "bool"
REALS, WHOLE, ANY = (FLOAT,), (INT, BYTE), (FLOAT, INT, BYTE, BOOL)
NUMBERS = (FLOAT, INT, BYTE)


class Argument(NamedTuple):
    dtype: str
    alphabet: Alphabet
    data: bool
    draw: object  # a generator to an array


def dyadic(rng):
    return rng.integers(-64, 65, SHAPE) / 16


def whole(dtype):
    info = np.iinfo(dtype)
    extremes = [info.min, info.max, 0, 1, 2, 3, info.max - 1, info.min + 1]

    def draw(rng):
        some = rng.choice(np.array(extremes, dtype), SHAPE)
        return np.where(rng.random(SHAPE) < 0.5, rng.integers(0, 9, SHAPE), some)

    return draw


ARGUMENTS = [
    Argument(FLOAT, REAL, True, dyadic),
    Argument(FLOAT, BINARY, True, lambda r: r.integers(0, 2, SHAPE)),
    Argument(FLOAT, TERNARY, True, lambda r: r.integers(-1, 2, SHAPE)),
    Argument(
        FLOAT,
        Alphabet(0, 5, integer=True),
        True,
        lambda r: r.integers(0, 6, SHAPE),
    ),
    Argument(
        FLOAT,
        Alphabet(-4, 4, power=True),
        True,
        lambda r: r.choice([-4, -1, -0.5, 0, 0.25, 2, 4], SHAPE),
    ),
    Argument(
        FLOAT,
        Alphabet(-1, 0, integer=True),
        True,
        lambda r: -r.integers(0, 2, SHAPE),
    ),
    Argument(INT, domain.of_dtype(np.int32), True, whole(np.int32)),
    Argument(BYTE, domain.of_dtype(np.uint8), True, whole(np.uint8)),
    Argument(BOOL, BINARY, True, lambda r: r.random(SHAPE) < 0.5),
    Argument(FLOAT, REAL, False, dyadic),
    Argument(
        INT, Alphabet(-3, 3, integer=True), False, lambda r: r.integers(-3, 4, SHAPE)
    ),
]
CONSTANTS = (0, 1, -1, 2, 0.5, 0.375, -4, 3)
INDEX = np.array([2, 0, 0, 3])


def shown(x):
    """A row or a number at the shape of all."""
    return jnp.broadcast_to(x, SHAPE)


@jax.custom_jvp
def custom(x):
    return jnp.minimum(x, x - 1)


custom.defjvp(lambda x, t: (custom(*x), *t))


@jax.custom_vjp
def custom_back(x):
    return x + x


custom_back.defvjp(lambda x: (custom_back(x), None), lambda _, g: (2 * g,))


def through_conv(x, w):
    numbers = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x[None, :, :, None], w[:2, :3, None, None], (1, 1), "SAME",
        dimension_numbers=numbers,
    )  # fmt: skip
    return y[0, :, :, 0]


def strided_conv(x, w):
    y = lax.conv_general_dilated(
        x[None, :, :, None], w[:3, :3, None, None], (2, 1), ((3, 1), (1, 1)),
        lhs_dilation=(2, 1), rhs_dilation=(1, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return shown(y[0, :1, :N, 0])


def window(x, init, how, padding="SAME"):
    return lax.reduce_window(x, init, how, (2, 2), (1, 1), padding)


def scanned(how):
    def run(x, y):
        def step(c, row):
            new = how(c, row)
            return new, jnp.where(row > 0, new, c)

        last, rows = lax.scan(step, x[0], y)
        return jnp.where(rows == shown(last), rows, shown(last))

    return run


def rounds(how):
    def run(x, y):
        def step(c):
            i, v = c
            return i + 1, how(v, y)

        return lax.while_loop(lambda c: c[0] < 3, step, (0, x))[1]

    return run


def branch(x, y, p):
    return lax.cond(p[0, 0], lambda a, b: a, lambda a, b: jnp.minimum(a, b), x, y)


def switch(x, y, i):
    which = jnp.clip(i[0, 0], 0, 2).astype(jnp.int32)
    return lax.switch(which, [lambda a, b: a, lambda a, b: b, jnp.maximum], x, y)


def dot(x, y):
    return lax.dot_general(x, y, (((1,), (0,)), ((), ())))


def scatter_add(x, y):
    return x.at[INDEX].add(y)


def number(n, like):
    return np.asarray(n, like.dtype)[()]


def some(x, by):
    """The same whatever is known of x: a stated number at places that are fixed."""
    return x.at[jnp.array([0, 9, 2, 1])].get(mode="fill", fill_value=by)


# name -> (what each operand may be, function). Results are of one shape.
UNARY = {
    "neg": (NUMBERS, lax.neg),
    "abs": ((FLOAT, INT), lax.abs),
    "sign": (NUMBERS, lax.sign),
    "floor": (REALS, lax.floor),
    "ceil": (REALS, lax.ceil),
    "round": (REALS, lax.round),
    "coarse": (REALS, lambda x: lax.reduce_precision(x, 8, 2)),
    "power0": (REALS, lambda x: lax.integer_pow(x, 0)),
    "power1": (REALS, lambda x: lax.integer_pow(x, 1)),
    "power3": (NUMBERS, lambda x: lax.integer_pow(x, 3)),
    "power-1": (REALS, lambda x: lax.integer_pow(x, -1)),
    "square": (NUMBERS, lax.square),
    "clip": (NUMBERS, lambda x: jnp.clip(x, 0, 1)),
    "clamp": (NUMBERS, lambda x: lax.clamp(number(1, x), x, number(3, x))),
    "exp": (REALS, lax.exp),
    "logistic": (REALS, lax.logistic),
    "tanh": (REALS, lax.tanh),
    "sqrt": (REALS, lambda x: lax.sqrt(lax.abs(x))),
    "exp2": (REALS, lambda x: lax.exp2(jnp.clip(jnp.round(x), -4, 4))),
    "pow2": (REALS, lambda x: lax.pow(shown(2.0), jnp.clip(jnp.floor(x), -3, 3))),
    "isfinite": (REALS, lax.is_finite),
    "not": ((INT, BYTE, BOOL), lax.bitwise_not),
    "third": (NUMBERS, lambda x: lax.div(x, jnp.full_like(x, 3))),
    "half": (NUMBERS, lambda x: lax.div(x, jnp.full_like(x, 2))),
    "minus": ((FLOAT, INT), lambda x: lax.div(x, jnp.full_like(x, -1))),
    "rem4": (NUMBERS, lambda x: lax.rem(x, jnp.full_like(x, 4))),
    "rem3": (NUMBERS, lambda x: lax.rem(x, jnp.full_like(x, 3))),
    "rem half": (REALS, lambda x: lax.rem(x, jnp.full_like(x, 0.5))),
    "left": (WHOLE, lambda x: lax.shift_left(x, jnp.full_like(x, 3))),
    "left far": (WHOLE, lambda x: lax.shift_left(x, jnp.full_like(x, 40))),
    "one left": (WHOLE, lambda n: lax.shift_left(jnp.ones_like(n), n)),
    "logical": (WHOLE, lambda x: lax.shift_right_logical(x, jnp.full_like(x, 2))),
    "arithmetic": (
        WHOLE, lambda x: lax.shift_right_arithmetic(x, jnp.full_like(x, 33))),
    "transpose": (ANY, lambda x: x.T.reshape(2, 8).reshape(SHAPE)),
    "rev": (ANY, lambda x: lax.rev(x, (0,))),
    "pad": (ANY, lambda x: lax.pad(x, jnp.zeros((), x.dtype), ((1, -1, 0), (0, 0, 0)))),
    "pad1": (ANY, lambda x: lax.pad(x, jnp.ones((), x.dtype), ((0, 0, 0), (-2, 2, 0)))),
    "gather": (ANY, lambda x: x[INDEX]),
    "fill": (ANY, lambda x: some(x, number(1, x))),
    "fill3": (REALS, lambda x: some(x, 3.5)),
    "fill extreme": (WHOLE, lambda x: x.at[jnp.array([0, 9, 2, 1])].get(mode="fill")),
    "wrap": (ANY, lambda x: jnp.take(x, INDEX, 1, mode="clip")),
    "dynamic": (ANY, lambda x: shown(lax.dynamic_slice(x, (1, 0), (1, N)))),
    "look up": (WHOLE, lambda i: jnp.asarray(CONSTANTS)[i % 8]),
    "total": (NUMBERS, lambda x: shown(x.sum(0, x.dtype))),
    "product": (NUMBERS, lambda x: shown(x.prod(1, dtype=x.dtype))),
    "largest": (ANY, lambda x: shown(x.max(1))),
    "least": (ANY, lambda x: shown(x.min())),
    "all": ((BOOL,), lambda x: shown(x.all(0))),
    "argmax": (ANY, lambda x: shown(x.argmax(1).astype(np.int32))),
    "cumsum": (NUMBERS, lambda x: lax.cumsum(x, 1, reverse=True)),
    "cumprod": (NUMBERS, lambda x: lax.cumprod(x, 0)),
    "iota": (
        NUMBERS, lambda x: lax.max(x, lax.broadcasted_iota(x.dtype, SHAPE, 1))),
    "cummax": (NUMBERS, lambda x: lax.cummax(x, 0)),
    "window sum": (NUMBERS, lambda x: window(x, number(0, x), lax.add)),
    "window max": (REALS, lambda x: window(x, -INF, lax.max)),
    "window out": (
        REALS, lambda x: window(x, -INF, lax.max, ((3, 0), (1, 0)))[:N, :N]),
    "empty": (NUMBERS, lambda x: shown(x[:, :0].sum(1, x.dtype)[0])),
    "jit": (NUMBERS, jax.jit(lambda x: jnp.maximum(x, x[::-1]))),
    "remat": (NUMBERS, jax.checkpoint(lambda x: jnp.where(x > 1, x, 1))),
    "custom_jvp": (NUMBERS, custom),
    "custom_vjp": (NUMBERS, custom_back),
    "barrier": (ANY, lambda x: lax.optimization_barrier((x, x > 0))[0]),
    "vmap": (NUMBERS, jax.vmap(lambda row: row - row.max())),
    "stack": (ANY, lambda x: jnp.stack([x[1], x[0], x[1], x[2]])),
    "unstack": (ANY, lambda x: lax.concatenate(
        [row[None] for row in jnp.unstack(x)[::-1]], 0)),
    "tile": (ANY, lambda x: lax.tile(x[:2], (2, 1))),
    "split": (ANY, lambda x: jnp.concatenate(jnp.split(x, 2)[::-1])),
} | {
    f"to {dtype}": (ANY, lambda x, dtype=dtype: lax.convert_element_type(x, dtype))
    for dtype in (FLOAT, INT, BYTE, BOOL)
} | {
    f"times {c}": (REALS, lambda x, c=c: x * c) for c in CONSTANTS
} | {
    f"plus {c}": (REALS, lambda x, c=c: c - x) for c in CONSTANTS
}  # fmt: skip
BINARY_OPS = {
    "add": (NUMBERS, lax.add),
    "sub": (NUMBERS, lax.sub),
    "mul": (NUMBERS, lax.mul),
    "max": (NUMBERS, lax.max),
    "min": (NUMBERS, lax.min),
    "divide": (REALS, lax.div),
    "dot": (REALS, dot),
    "conv": (REALS, through_conv),
    "strided": (REALS, strided_conv),
    "and": ((INT, BYTE, BOOL), lax.bitwise_and),
    "or": ((INT, BYTE, BOOL), lax.bitwise_or),
    "xor": ((INT, BYTE, BOOL), lax.bitwise_xor),
    "left by": (WHOLE, lax.shift_left),
    "right by": (WHOLE, lax.shift_right_logical),
    "concatenate": (ANY, lambda x, y: lax.concatenate([x[:1], y[1:]], 0)),
    "update": (ANY, lambda x, y: lax.dynamic_update_slice(x, y[:2], (1, 0))),
    "scatter": (ANY, lambda x, y: x.at[INDEX[1:3]].set(y[:2])),
    "scatter add": (NUMBERS, scatter_add),
    "scan add": (NUMBERS, scanned(lax.add)),
    "scan max": (NUMBERS, scanned(lax.max)),
    "scan mul": (NUMBERS, scanned(lax.mul)),
    "scan half": (REALS, scanned(lambda c, x: 0.5 * c + x)),
    "scan reset": (REALS, scanned(lambda c, x: jnp.where(c + x > 1, 0, c + x))),
    "scan swap": (ANY, scanned(lambda c, x: jnp.where(c == 0, x, c))),
    "while add": (NUMBERS, rounds(lax.add)),
    "while min": (NUMBERS, rounds(lax.min)),
} | {name: (ANY, getattr(lax, name)) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
CHOICES = {
    "select": (BOOL, lambda x, y, p: lax.select_n(p, x, y)),
    "cond": (BOOL, branch),
    "switch": (INT, switch),
    "select3": (
        INT, lambda x, y, i: lax.select_n(jnp.clip(i, 0, 2).astype(np.int32), x, y, x)),
}  # fmt: skip
NAMES = [*UNARY, *BINARY_OPS, *CHOICES]


class Step(NamedTuple):
    name: str
    reads: tuple[int, ...]


def program(rng, length: int) -> list[Step]:
    """Operations on earlier values; which are of what dtype is found by looking."""
    dtypes = [a.dtype for a in ARGUMENTS]
    steps: list[Step] = []
    while len(steps) < length:
        name = NAMES[rng.integers(len(NAMES))]
        allowed, count, _ = operation(name)
        # What was made last is read most, so that programs are deep.
        age = rng.geometric(0.15, 2)
        first = max(len(dtypes) - int(age[0]), 0)
        if rng.random() < 0.3:
            first = int(rng.integers(len(ARGUMENTS)))
        if dtypes[first] not in allowed:
            continue
        reads = [first]
        if count > 1:
            alike = [i for i, d in enumerate(dtypes) if d == dtypes[first]]
            reads.append(alike[rng.integers(len(alike))])
        if count > 2:
            which = [i for i, d in enumerate(dtypes) if d == CHOICES[name][0]]
            reads.append(which[rng.integers(len(which))])
        steps.append(Step(name, tuple(reads)))
        avals = [jax.ShapeDtypeStruct(SHAPE, dtypes[i]) for i in reads]
        dtypes.append(str(made_dtype(name, tuple(map(str, (a.dtype for a in avals))))))
    return steps


_DTYPES: dict = {}


def made_dtype(name, dtypes):
    key = name, dtypes
    if key not in _DTYPES:
        avals = [jax.ShapeDtypeStruct(SHAPE, d) for d in dtypes]
        out = jax.eval_shape(operation(name)[2], *avals)
        assert out.shape == SHAPE, (name, out)
        _DTYPES[key] = out.dtype
    return _DTYPES[key]


def operation(name):
    """(dtypes, operands, function)."""
    for table, count in ((UNARY, 1), (BINARY_OPS, 2)):
        if name in table:
            return table[name][0], count, table[name][1]
    return ANY, 3, CHOICES[name][1]


def run(steps, args, of=lambda name: operation(name)[2]):
    """All that a program makes, one after the other."""
    values = list(args)
    for step in steps:
        values.append(of(step.name)(*(values[i] for i in step.reads)))
    return values[len(args) :]


@functools.cache  # programs differ, what they are made of does not: few compilations
def compiled(name):
    quick = {"xla_backend_optimization_level": 0}
    return jax.jit(operation(name)[2], compiler_options=quick)


def exact(x) -> bool:
    """Of few enough digits that the next operation is exact, too."""
    if x.dtype.kind != "f":
        return True
    with np.errstate(all="ignore"):
        return bool(
            np.isfinite(x).all()
            and (np.abs(x) < 2.0**24).all()
            and (x * 2.0**24 == np.round(x * 2.0**24)).all()
        )


def violations(claim: Value, x: np.ndarray, args) -> list[str]:
    a = claim.alphabet
    y = x.astype(np.float64)
    found = []
    if (y < a.lo).any() or (y > a.hi).any():
        found.append(f"{y.min()}..{y.max()} is not in [{a.lo}, {a.hi}]")
    if a.integer and (y != np.round(y)).any():
        found.append("no integers")
    if a.power and not np.isin(np.abs(np.frexp(y)[0]), (0, 0.5)).all():
        found.append("no powers of two")
    if claim.input is not None:
        entries = np.append(args[int(claim.input)].ravel().astype(np.float64), 0)
        if not np.isin(y, entries).all():
            found.append("not the input")
    return found


def check(steps, rng) -> list[str]:
    """What is wrong with the claims about one program."""
    ins = [
        Value(a.alphabet, a.data, str(i) if a.data else None)
        for i, a in enumerate(ARGUMENTS)
    ]
    avals = [jax.ShapeDtypeStruct(SHAPE, a.dtype) for a in ARGUMENTS]
    closed = jax.make_jaxpr(lambda *args: run(steps, args))(*avals)
    claims = results(closed, ins)
    first = [a.draw(rng).astype(a.dtype) for a in ARGUMENTS]
    other = [
        a.draw(rng).astype(a.dtype) if a.data else x
        for a, x in zip(ARGUMENTS, first, strict=True)
    ]
    one, two = (
        [np.asarray(x) for x in run(steps, args, compiled)] for args in (first, other)
    )
    sure = [True] * len(ARGUMENTS)
    found = []
    for i, (step, claim) in enumerate(zip(steps, claims, strict=True)):
        sure.append(
            all(sure[j] for j in step.reads) and exact(one[i]) and exact(two[i])
        )
        if not sure[-1]:
            continue
        wrong = violations(claim, one[i], first) + violations(claim, two[i], other)
        if not claim.data and not np.array_equal(one[i], two[i]):
            wrong.append("depends on data")
        found += [f"{i} {step}: {claim}: {w}" for w in wrong]
    return found


@pytest.mark.parametrize("seed", range(6))
def test_no_random_program_leaves_what_was_claimed(seed, x64):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        steps = program(rng, 14)
        wrong = check(steps, rng)
        assert not wrong, "\n".join([*wrong, *map(str, steps)])


def primitives(jaxpr):
    found = set()
    for eqn in jaxpr.eqns:
        found.add(eqn.primitive.name)
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program):
            if is_program(inner):
                found |= primitives(open_jaxpr(inner)[0])
    return found


def is_program(x):
    return hasattr(x, "jaxpr") or hasattr(x, "eqns")


def test_every_rule_is_put_to_the_test(x64):
    avals = [jax.ShapeDtypeStruct(SHAPE, a.dtype) for a in ARGUMENTS]
    used = set()
    for name in NAMES:
        allowed, count, fn = operation(name)
        args = [next(a for a in avals if a.dtype == allowed[0])] * min(count, 2)
        if count > 2:
            args.append(next(a for a in avals if a.dtype == CHOICES[name][0]))
        used |= primitives(jax.make_jaxpr(fn)(*args).jaxpr)
    # Of one rule some are enough; the last hold no rules of their own.
    alike = {*NONLINEAR, *MOVES, "add_any", "bitcast_convert_type", "argmin", "cummin"}
    alike |= {"reduce_or", "reduce_xor", "reduce_window_min"}
    assert set(RULES) - used <= alike
    assert {"scan", "while", "cond", "jit", "custom_jvp_call"} <= used
