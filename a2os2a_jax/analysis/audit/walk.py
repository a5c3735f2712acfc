"""A program read equation by equation: control flow, and what is charged where.

Programs within programs (jit, scan, while, cond, remat, custom derivatives) are walked
like the one around them. A scan's carry is iterated to a fixed point, with widening; a
while loop is followed round by round as long as its condition is decided by constants.
What no result needs is not walked: a compiler drops it.
"""

import functools
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from jax.extend import source_info_util
from jax.extend.core import Literal, Primitive

from a2os2a_jax.analysis.audit import domain, rules
from a2os2a_jax.analysis.audit.domain import Value

ROUNDS = 1024  # of a while loop, at most
_STEADY = 3  # rounds of a scan before bounds that still move are given up
At = tuple[int, ...]  # which equation: its index, inside which equation, ...


class Operation(NamedTuple):
    """What one equation does, in one kind of operation.

    kind: see `rules`.
    count: operations of one call of the program.
    alphabets, widths, sizes: of the operands, with widths in bits and sizes in entries;
      into: bits of the result; of a state update, of an entry that is handed on.
    path: module path; source: file:line; as far as the program tells. No rule looks at
      either.
    why, advice: of a product: what is multiplied, and what to do about it.
    allowed: a multiplication that was permitted.
    of: of a sum, the kind of the products summed, if they are charged too.
    folds: computed ahead of any input.
    spikes: operands that are data in {-1, 0, 1}; fixed: those that are no data.
    at: the equation. loop: it is inside of one, and runs over a state.
    """

    kind: str
    count: int
    alphabets: tuple[str, ...]
    widths: tuple[int, ...]
    into: int
    primitive: str
    path: str
    source: str
    why: str = ""
    advice: str = ""
    allowed: bool = False
    of: str = ""
    folds: bool = False
    sizes: tuple[int, ...] = ()
    spikes: tuple[int, ...] = ()
    fixed: tuple[int, ...] = ()
    at: At = ()
    loop: bool = False

    @property
    def place(self) -> str:
        return self.path or self.source or self.primitive


def walk(closed, ins: Sequence[Value], allow: Sequence[str] = ()) -> list[Operation]:
    """Everything a closed jaxpr does to arguments of which `ins` is known."""
    ledger: list[Operation] = []
    _Walker(ledger, tuple(allow)).closed(closed, ins)
    return ledger


def results(closed, ins: Sequence[Value]) -> list[Value]:
    """What is known of the results of a closed jaxpr."""
    return _Walker(None, ()).closed(closed, ins)


def open_jaxpr(closed) -> tuple[Any, Sequence[Any]]:
    """(jaxpr, consts) of a closed jaxpr, or of an open one that has none."""
    return getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())


def scan_counts(eqn) -> tuple[int, int]:
    """(constants, carried values): how many stand before the scanned operands.

    jax up to 0.10 says so in two parameters, jax from 0.11 in three groups of leaves.
    """
    p = eqn.params
    if "num_carry" in p:
        return p["num_consts"], p["num_carry"]
    constants, carry, _ = p["ft_in"].unpack()
    return len(constants.vals), len(carry.vals)


class _Where(NamedTuple):
    at: At = ()
    path: str = ""
    source: str = ""
    times: int = 1
    loop: bool = False


class _Charge:
    """Where a rule leaves its operations: see `rules.Site`."""

    def __init__(self, ledger: list[Operation] | None, eqn, ins, where: _Where):
        self.ledger, self.eqn, self.ins, self.where = ledger, eqn, ins, where

    @property
    def place(self) -> str:
        return path_of(self.eqn, self.where.path) or self.source

    @property
    def source(self) -> str:
        """Of the equation; inside of a library's function, of the call to that."""
        return source_of(self.eqn) or self.where.source

    def __call__(
        self,
        kind,
        count,
        *operands,
        why="",
        allowed=False,
        of="",
        force=False,
        into=None,
    ) -> int | None:
        which = operands or tuple(range(len(self.ins)))
        folds = not force and not any(v.data for v in self.ins)
        if self.ledger is None or not count and not force:
            return None
        dtypes = [getattr(self.eqn.invars[i].aval, "dtype", None) for i in which]
        alphabets = [self.ins[i].alphabet for i in which]
        out = self.eqn.outvars[0].aval if self.eqn.outvars else None
        pairs = [p for p in zip(alphabets, dtypes, strict=True) if p[1] is not None]
        self.ledger.append(
            Operation(
                kind=kind,
                count=count * self.where.times,
                alphabets=tuple(str(a) for a, _ in pairs),
                widths=tuple(_width(a, d) for a, d in pairs),
                into=_width(domain.REAL, getattr(out, "dtype", None))
                if into is None
                else into,
                primitive=self.eqn.primitive.name,
                path=path_of(self.eqn, self.where.path),
                source=self.source,
                why=why,
                allowed=allowed and not folds,
                of=of,
                folds=folds,
                sizes=tuple(_entries(self.eqn.invars[i]) for i in which),
                spikes=tuple(
                    i
                    for i in which
                    if self.ins[i].data and self.ins[i].alphabet.ternary
                ),
                fixed=tuple(i for i in which if not self.ins[i].data),
                at=self.where.at,
                loop=self.where.loop,
            )
        )
        return len(self.ledger) - 1

    def advise(self, index: int, text: str) -> None:
        """Says what to do about an earlier operation; what is said first counts."""
        if self.ledger is not None and not self.ledger[index].advice:
            self.ledger[index] = self.ledger[index]._replace(advice=text)


def _entries(var) -> int:
    return math.prod(getattr(var.aval, "shape", ()))


def _width(alphabet, dtype) -> int:
    return domain.width(alphabet, dtype) if domain.is_number(dtype) else 0


class _Walker:
    def __init__(self, ledger: list[Operation] | None, allow: tuple[str, ...]):
        self.ledger, self.allow = ledger, allow

    def closed(self, closed, ins, need=None, where=None) -> list[Value]:
        """As `program`, of a closed jaxpr, or of an open one that has no constants."""
        jaxpr, consts = open_jaxpr(closed)
        known = [Value(domain.constant(c), data=False) for c in consts]
        need = [True] * len(jaxpr.outvars) if need is None else need
        return self.program(jaxpr, known, ins, need, where or _Where())

    def program(
        self, jaxpr, consts, ins, need: Sequence[bool], where: _Where
    ) -> list[Value]:
        """What is known of the results of a jaxpr."""
        env: dict[Any, Value] = {}
        env.update(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, ins, strict=True))

        def read(var) -> Value:
            if isinstance(var, Literal):
                return Value(domain.constant(var.val), data=False)
            return env.get(var, Value())  # a call may have operands that it ignores

        for i, (eqn, wanted) in enumerate(
            zip(jaxpr.eqns, needed(jaxpr, need), strict=True)
        ):
            if wanted is None:
                continue
            inside = where._replace(at=(*where.at, i))
            values = self.equation(eqn, [read(v) for v in eqn.invars], wanted, inside)
            env.update(zip(eqn.outvars, values, strict=True))
        return [
            read(v) if n else Value() for v, n in zip(jaxpr.outvars, need, strict=True)
        ]

    def equation(self, eqn, ins, wanted, where: _Where) -> list[Value]:
        name = eqn.primitive.name
        charge = _Charge(self.ledger, eqn, ins, where)
        if eqn.primitive not in _primitives_of_jax(len(sys.modules)):
            charge(rules.UNKNOWN, 1, why="a primitive that is not of jax", force=True)
            return [_unknown(v) for v in eqn.outvars]
        inside = where._replace(
            path=path_of(eqn, where.path), source=source_of(eqn) or where.source
        )
        if name == "scan":
            return self.scan(eqn, ins, wanted, inside)
        if name == "while":
            return self.while_loop(eqn, ins, inside)
        if name == "cond":
            return self.cond(eqn, ins, wanted, inside)
        body = body_of(eqn)
        if body is not None:
            return self.closed(body, ins, wanted, inside)
        if eqn.effects or "callback" in name:
            why = "has side effects" if eqn.effects else "calls back to the host"
            charge(rules.UNKNOWN, 1, why=why, force=True)
            return [_unknown(v) for v in eqn.outvars]
        return rules.apply(rules.Site(eqn, ins, self.allow, charge))

    def quietly(self) -> "_Walker":
        """The same reading, without charging anything."""
        return _Walker(None, self.allow)

    def scan(self, eqn, ins, wanted, where: _Where) -> list[Value]:
        p = eqn.params
        (n, m), length = scan_counts(eqn), p["length"]
        fixed, carry, xs = ins[:n], list(ins[n : n + m]), ins[n + m :]
        need = [True] * m + list(wanted[m:])
        if length == 0:
            return carry + [Value(domain.ZERO, False) for _ in eqn.outvars[m:]]

        def step(walker, carry, where):
            held = [replace(value, state=True) for value in carry]
            return walker.closed(p["jaxpr"], [*fixed, *held, *xs], need, where)

        carry = self.fixed_point(lambda c: step(self.quietly(), c, where)[:m], carry)
        out = step(self, carry, where._replace(times=where.times * length, loop=True))
        charge = _Charge(self.ledger, eqn, [*fixed, *carry, *xs], where)
        bits = [
            _width(value.alphabet, getattr(var.aval, "dtype", None))
            for value, var in zip(out[m:], eqn.outvars[m:], strict=True)
        ]
        for i, value in enumerate(carry, n):
            if value.data:
                count = _entries(eqn.invars[i]) * length
                charge(rules.STATE, count, i, into=max(bits, default=0))
        return [*carry, *out[m:]]

    @staticmethod
    def fixed_point(step: Callable, carry: list[Value]) -> list[Value]:
        rounds = 0
        while True:
            how = domain.join if rounds < _STEADY else domain.widen
            new = [
                replace(domain.join_values(old, now, how), state=False)
                for old, now in zip(carry, step(carry), strict=True)
            ]
            if new == carry:
                return carry
            carry, rounds = new, rounds + 1

    def while_loop(self, eqn, ins, where: _Where) -> list[Value]:
        p = eqn.params
        k, n = p["cond_nconsts"], p["body_nconsts"]
        test, body = p["cond_jaxpr"], p["body_jaxpr"]
        of_test, of_body, start = ins[:k], ins[k : k + n], list(ins[k + n :])
        charge = _Charge(self.ledger, eqn, ins, where)
        where = where._replace(loop=True)

        def run(walker, program, args):
            return walker.closed(program, args, where=where)

        carry, mark = start, len(self.ledger) if self.ledger is not None else 0
        for _ in range(ROUNDS):
            (go,) = run(self.quietly(), test, [*of_test, *carry])
            if not go.alphabet.constant:
                by = "data" if go.data else "values that are not known ahead"
                why = f"a loop whose bound depends on {by}"
                break
            if not go.alphabet.lo:
                return carry
            run(self, test, [*of_test, *carry])
            carry = run(self, body, [*of_body, *carry])
        else:
            why = f"a loop of more than {ROUNDS} rounds"
        if self.ledger is not None:
            del self.ledger[mark:]
        charge(rules.UNKNOWN, 1, why=why)
        carry = self.fixed_point(
            lambda c: run(self.quietly(), body, [*of_body, *c]), start
        )
        go = run(self, test, [*of_test, *carry])[0]
        run(self, body, [*of_body, *carry])
        return [v.of(v.alphabet) if not go.data else _of_data(v) for v in carry]

    def cond(self, eqn, ins, wanted, where: _Where) -> list[Value]:
        which, *args = ins
        branches = eqn.params["branches"]
        if which.alphabet.constant and not which.data:
            last = len(branches) - 1
            chosen = min(max(int(which.alphabet.lo), 0), last)
            picks = [chosen]
        else:
            picks = list(range(len(branches)))
        total: list[Value] | None = None
        for i in picks:
            inside = where._replace(at=(*where.at, i))
            out = self.closed(branches[i], args, wanted, inside)
            if total is not None:
                out = [
                    domain.join_values(a, b) for a, b in zip(total, out, strict=True)
                ]
            total = out
        if len(picks) > 1:
            charge = _Charge(self.ledger, eqn, ins, where)
            charge(rules.SELECT, len(picks) - 1, 0)
            if which.data:
                total = [_of_data(v) for v in total]
        return total


def _of_data(value: Value) -> Value:
    return replace(value, data=True, input=None)


def _unknown(var) -> Value:
    return Value(domain.of_dtype(getattr(var.aval, "dtype", None)))


# ---- programs within programs

_CALLS = {  # primitive -> parameter that holds its program
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "core_closed_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def body_of(eqn):
    """The program that a call runs once, or None."""
    key = _CALLS.get(eqn.primitive.name)
    return eqn.params.get(key) if key else None


def needed(jaxpr, need: Sequence[bool]) -> list[list[bool] | None]:
    """For each equation which results someone needs; None if it can be left out."""
    return _liveness(jaxpr, need)[0]


def _liveness(jaxpr, need: Sequence[bool]) -> tuple[list, list[bool]]:
    """(as `needed`, which arguments are needed)."""
    alive = {v for v, n in zip(jaxpr.outvars, need, strict=True) if n and _is_var(v)}
    found: list[list[bool] | None] = []
    for eqn in reversed(jaxpr.eqns):
        wanted = [v in alive for v in eqn.outvars]
        if not any(wanted) and not eqn.effects and "callback" not in eqn.primitive.name:
            found.append(None)
            continue
        found.append(wanted)
        body = body_of(eqn)
        reads = [True] * len(eqn.invars)
        if body is not None:
            reads = _liveness(open_jaxpr(body)[0], wanted)[1]
        alive |= {v for v, r in zip(eqn.invars, reads, strict=True) if r and _is_var(v)}
    return found[::-1], [v in alive for v in jaxpr.invars]


@functools.lru_cache(maxsize=1)
def _primitives_of_jax(modules: int) -> frozenset[Primitive]:
    """All that jax has made, once this many modules are there.

    Somebody else's may bear the same name and do something else.
    """
    own = [m for name, m in list(sys.modules.items()) if f"{name}.".startswith("jax.")]
    return frozenset(
        p for m in own for p in vars(m).values() if isinstance(p, Primitive)
    )


def _is_var(v) -> bool:
    return not isinstance(v, Literal)


# ---- where an equation is from: for readers, never for rules

_WRAPPED = re.compile(r"^\w+\((.*)\)$")
_METHOD = re.compile(r"\.|->")  # Columnar.__call__, nd,md->nm
_NOISE = re.compile(r"checkpoint|rematted_computation|remat2?|while|body|cond|scan")
_OTHERS = re.compile(r"[/\\](jax|jaxlib|flax|a2os2a_jax.analysis.audit)[/\\]")


def path_of(eqn, outer: str = "") -> str:
    """The module path of an equation, "block_0/attention/q_linear"."""
    own = _clean(str(eqn.source_info.name_stack))
    if not outer or own == outer or own.startswith(f"{outer}/"):
        return own or outer
    return f"{outer}/{own}" if own else outer


def _clean(stack: str) -> str:
    parts = []
    for part in stack.split("/"):
        while match := _WRAPPED.match(part):
            part = "" if part.startswith(("jit(", "pjit(")) else match[1]
        if part and not _METHOD.search(part) and not _NOISE.fullmatch(part):
            parts.append(part)
    if parts and parts[0][0].isupper():  # the root module, named by its class
        parts = parts[1:]
    return "/".join(parts)


def source_of(eqn) -> str:
    """file.py:line of the innermost frame outside of jax, flax and this, or ""."""
    own = _frame_of(getattr(eqn.source_info, "traceback", None))
    return own or source_info_util.summarize(eqn.source_info)


@functools.lru_cache(maxsize=2**14)
def _frame_of(traceback) -> str:
    for frame in getattr(traceback, "frames", ()):
        if not _OTHERS.search(frame.file_name):
            return f"{_short(frame.file_name)}:{frame.line_num}"
    return ""


def _short(file: str) -> str:
    parts = re.split(r"[/\\]", file)
    if "a2os2a_jax" in parts:
        return "/".join(parts[len(parts) - parts[::-1].index("a2os2a_jax") - 1 :])
    return parts[-1]


def trace(fn: Callable, *avals):
    """The closed jaxpr of `fn` on abstract arguments.

    Raises:
      ValueError: `fn` does not take arguments of these shapes.
    """
    try:
        return jax.make_jaxpr(fn)(*avals)
    except Exception as error:  # also of flax, whose errors are no ValueErrors
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"certify: cannot trace the function: {what}") from error
