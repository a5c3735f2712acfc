"""How many of a program's operations really happen, counted while it runs.

The certificate counts with every spike firing. A product with a spike costs nothing
where the spike is 0; here the same equations are run on data, and every addition that a
spike triggers is counted. Which operands are spikes is what `audit` proved, not what a
layer is called.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from a2os2a_jax.analysis import audit
from a2os2a_jax.analysis.audit import rules
from a2os2a_jax.analysis.audit.walk import (
    At,
    Operation,
    body_of,
    open_jaxpr,
    scan_counts,
    walk,
)

_EVENTS = ("dot_general", "conv_general_dilated", "reduce_sum")


class Tally(NamedTuple):
    """One operation of the program, summed over all inputs seen.

    dense: as the certificate counts, every spike firing. events: additions made, one
    for each spike that is not 0 and each sum it goes into; of two operands that are
    spikes the one that fires less drives. nonzero: of these, the ones that add
    something: the other operand, if it is data too, is not 0 either. Where nothing is
    driven by spikes all three are the same.
    """

    operation: Operation
    dense: int
    events: int
    nonzero: int

    @property
    def driven(self) -> bool:
        """Spikes decide whether it happens."""
        return is_driven(self.operation)


class _Sums:
    """Of one operation: dense, and for each operand that is a spike the two others."""

    def __init__(self):
        self.dense = 0
        self.driven: dict[int, tuple[int, int]] = {}


def is_driven(o: Operation) -> bool:
    """An addition for each spike: a sum of products with one, or of spikes."""
    plain = o.kind == rules.ADDITION and not o.of and not o.folds
    return plain and o.primitive in _EVENTS and bool(o.spikes)


class Counter:
    """Runs a function and counts what it does: `outputs = counter(*args)`.

    fn, params, allow: as in `audit.certify`. then: what to make of the outputs, on the
    device; that is not counted. Call it as often as there are batches, of any size; it
    is compiled once for each. Then read `tallies`.
    """

    def __init__(
        self,
        fn: Callable,
        params: Sequence[int] = (0,),
        allow: Sequence[str] = ("input",),
        then: Callable = lambda out: out,
    ):
        self.fn, self.params, self.allow, self.then = fn, params, allow, then
        self._compiled: dict[str, tuple[list[Operation], dict, Callable]] = {}
        self._operations: list[Operation] = []
        self._sums: list[_Sums] = []

    def __call__(self, *args: Any) -> Any:
        shapes = jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), args)
        key = str(shapes)
        if key not in self._compiled:
            self._compiled[key] = self._compile(*args)
        operations, factors, run = self._compiled[key]
        out, counts = jax.device_get(run(*args))
        if not self._operations:
            self._operations = operations
            self._sums = [_Sums() for _ in operations]
        if len(operations) != len(self._operations):
            raise ValueError(
                f"Counter: this call makes {len(operations)} kinds of operation, an "
                f"earlier one {len(self._operations)}; expected the same program"
            )
        for i, (o, sums) in enumerate(zip(operations, self._sums, strict=True)):
            sums.dense += o.count
            for j, pair in enumerate(counts.get(i, ())):
                events, nonzero = (
                    int(n.sum(dtype=np.int64)) * factor
                    for n, factor in zip(pair, factors[i][j], strict=True)
                )
                old = sums.driven.get(j, (0, 0))
                sums.driven[j] = (old[0] + events, old[1] + nonzero)
        return out

    @property
    def tallies(self) -> list[Tally]:
        """All operations that depend on data."""
        return [
            Tally(o, sums.dense, *min(sums.driven.values(), default=(sums.dense,) * 2))
            for o, sums in zip(self._operations, self._sums, strict=True)
        ]

    def _compile(self, *args):
        closed, ins, _ = audit.read(
            self.fn, *args, params=self.params, allow=self.allow
        )
        operations = [o for o in walk(closed, ins, tuple(self.allow)) if not o.folds]
        wanted = {o.at: i for i, o in enumerate(operations) if is_driven(o)}
        tree = jax.tree.structure(jax.eval_shape(self.fn, *args))

        def run(*args):
            flat = jax.tree.leaves(args)
            jaxpr, consts = open_jaxpr(closed)
            found: dict[int, Any] = {}
            out = _run(jaxpr, consts, flat, (), wanted, operations, found, factors)
            return self.then(jax.tree.unflatten(tree, out)), found

        factors: dict[int, list[tuple[int, int]]] = {}  # known once `run` is traced
        return operations, factors, jax.jit(run)


def _run(jaxpr, consts, args, at: At, wanted, operations, counts, factors) -> list[Any]:
    """Evaluates a jaxpr; leaves in `counts` what the equations in `wanted` do."""
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= dict(zip(jaxpr.invars, args, strict=True))

    def read(var):
        return var.val if isinstance(var, Literal) else env[var]

    for i, eqn in enumerate(jaxpr.eqns):
        here = (*at, i)
        values = [read(v) for v in eqn.invars]
        if here in wanted:
            index = wanted[here]
            parts = _count(eqn, values, operations[index])
            counts[index] = [(e.counts, s.counts) for e, s in parts]
            factors[index] = [(e.factor, s.factor) for e, s in parts]
        inside = any(w[: len(here)] == here and w != here for w in wanted)
        body = body_of(eqn)
        if body is not None:
            inner, inner_consts = open_jaxpr(body)
            out = _run(
                inner, inner_consts, values, here, wanted, operations, counts, factors
            )
        elif inside and eqn.primitive.name == "scan":
            out = _run_scan(eqn, values, here, wanted, operations, counts, factors)
        else:  # in a loop or a branch the count stays that of the certificate
            out = eqn.primitive.bind(*values, **eqn.params)
            out = out if eqn.primitive.multiple_results else [out]
        env |= dict(zip(eqn.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _run_scan(eqn, values, here, wanted, operations, counts, factors) -> list[Any]:
    p = eqn.params
    jaxpr, consts = open_jaxpr(p["jaxpr"])
    n, m = scan_counts(eqn)
    fixed, carry, xs = values[:n], values[n : n + m], values[n + m :]

    def step(carry, x):
        inner: dict[int, Any] = {}
        args = [*fixed, *carry, *x]
        out = _run(jaxpr, consts, args, here, wanted, operations, inner, factors)
        return out[:m], (out[m:], inner)

    carry, (ys, inner) = jax.lax.scan(
        step, carry, xs, length=p["length"], reverse=p["reverse"]
    )
    counts |= inner
    return [*carry, *ys]


# ---- what one equation does: for each operand that is a spike, (events, nonzero), each
# an array and a factor whose product, summed, is meant: 32 bits would not hold it


class _Part(NamedTuple):
    counts: jax.Array
    factor: int


def _count(eqn, values, o: Operation) -> list[tuple[_Part, _Part]]:
    name = eqn.primitive.name
    if name == "reduce_sum":
        made = _Part(_per_example(values[0] != 0), 1)
        return [(made, made)]
    how = _count_dot if name == "dot_general" else _count_conv
    return [how(eqn, values, i, bool(o.fixed)) for i in o.spikes]


def _count_dot(eqn, values, i: int, fixed: bool):
    contract, batch = eqn.params["dimension_numbers"]
    spike, other = values[i], values[1 - i]
    used = {*contract[1 - i], *batch[1 - i]}
    fan_out = math.prod(n for a, n in enumerate(other.shape) if a not in used)
    events = _Part(_per_example(spike != 0), fan_out)
    if fixed:
        return events, events

    def over_free(x, j):
        """[batch..., contract...]: how many are not 0."""
        kept = (*batch[j], *contract[j])
        free = tuple(a for a in range(x.ndim) if a not in kept)
        some = (x != 0).sum(free, dtype=jnp.int32)
        left = sorted(kept)
        return some.transpose([left.index(a) for a in kept])

    return events, _Part(over_free(spike, i) * over_free(other, 1 - i), 1)


def _count_conv(eqn, values, i: int, fixed: bool):
    if i or not fixed or eqn.params["batch_group_count"] != 1:
        raise ValueError("activity: expected convolutions of spikes with weights")
    p, spike = eqn.params, values[0]
    numbers = p["dimension_numbers"]
    channels = values[1].shape[numbers.rhs_spec[0]] // p["feature_group_count"]
    some = (spike != 0).sum(numbers.lhs_spec[1], dtype=jnp.int32)
    left = [a for a in range(spike.ndim) if a != numbers.lhs_spec[1]]
    order = (numbers.lhs_spec[0], *numbers.lhs_spec[2:])
    some = some.transpose([left.index(a) for a in order])
    for used in reversed(rules.reach(eqn)):
        some = jnp.einsum("...i,i->...", some, jnp.asarray(used, jnp.int32))
    events = _Part(some, channels)
    return events, events


def _per_example(some: jax.Array) -> jax.Array:
    """How many are true, along the first axis."""
    if not some.ndim:
        return some.astype(jnp.int32)[None]
    return some.sum(tuple(range(1, some.ndim)), dtype=jnp.int32)
