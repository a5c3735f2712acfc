"""A static proof that a program needs no multiplication, or where it does.

    report = certify(lambda v, x: model.apply(v, x), variables, images)
    report.addition_only, str(report)

Read equation by equation, for all inputs: `domain` says what is known of a value,
`rules` what a primitive makes of it, `walk` follows control flow, `report` adds up.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from a2os2a_jax.analysis.audit import domain
from a2os2a_jax.analysis.audit.domain import Value
from a2os2a_jax.analysis.audit.report import Report, line
from a2os2a_jax.analysis.audit.rules import ADDITION, UNKNOWN
from a2os2a_jax.analysis.audit.walk import Operation, open_jaxpr, trace, walk

ALLOW = ("input",)
__all__ = ["ADDITION", "Operation", "Report", "certify", "certify_jaxpr", "line"]


def certify(
    fn: Callable,
    *avals: Any,
    params: Sequence[int] = (0,),
    allow: Sequence[str] = (),
) -> Report:
    """Whether `fn` multiplies, for every input of these shapes.

    Args:
      fn: any function of arrays, or of trees of them.
      *avals: its arguments; shapes and dtypes are looked at, values never are.
      params: which arguments are constants at inference. What is computed from them
        alone is computed once and costs nothing. Arrays that `fn` closes over are
        constants too, and their values are known. Where no argument is left, nothing
        is proven: give params=() to a function of data alone.
      allow: ("input",) permits products of parameters with an argument that is data and
        has not been computed with, whatever it is (also a state that is handed in);
        they are listed all the same, with the argument.
    Returns:
      A `Report`: .addition_only, .products, and str(report) a table. Operations are
      counted for one call, all spikes firing; products with a spike are additions.
    Raises:
      ValueError: `params` or `allow` name what there is not, an argument is no array,
        or `fn` does not take arguments of these shapes.
    """
    closed, ins, inputs = read(fn, *avals, params=params, allow=allow)
    operations = walk(closed, ins, tuple(allow))
    if not inputs:
        operations.append(_OF_NOTHING)
    return Report(tuple(operations), inputs)


_OF_NOTHING = Operation(
    kind=UNKNOWN,
    count=1,
    alphabets=(),
    widths=(),
    into=0,
    primitive="certify",
    path="the arguments",
    source="",
    why="none is data, so that everything is a constant; expected params=()",
)


def read(
    fn: Callable,
    *avals: Any,
    params: Sequence[int] = (0,),
    allow: Sequence[str] = (),
) -> tuple[Any, list[Value], tuple[str, ...]]:
    """(closed jaxpr, what is known of its arguments, names of those that are data).

    Raises:
      ValueError: as `certify`.
    """
    # The default names an argument that a function without any has not got.
    params = _checked(params, allow, max(len(avals), 1))
    shaped = [jax.tree.map(_shape_of, aval) for aval in avals]
    closed = trace(fn, *shaped)
    ins, inputs = [], []
    for i, aval in enumerate(shaped):
        for path, leaf in jax.tree_util.tree_leaves_with_path(aval):
            name = f"argument {i}{jax.tree_util.keystr(path)}"
            data = i not in params
            alphabet = domain.of_dtype(leaf.dtype)
            ins.append(Value(alphabet, data, name if data else None))
            if data:
                inputs.append(f"{name}: {leaf.dtype}{list(leaf.shape)}")
    return closed, ins, tuple(inputs)


def certify_jaxpr(
    closed, params: Sequence[int] = (), allow: Sequence[str] = ()
) -> Report:
    """As `certify`, of a closed jaxpr; `params` are numbers of its flat arguments.

    Raises:
      ValueError: `params` or `allow` name what there is not.
    """
    jaxpr, _ = open_jaxpr(closed)
    params = _checked(params, allow, len(jaxpr.invars))
    ins = [
        Value(
            domain.of_dtype(getattr(v.aval, "dtype", None)),
            i not in params,
            None if i in params else f"argument {i}",
        )
        for i, v in enumerate(jaxpr.invars)
    ]
    return Report(tuple(walk(closed, ins, tuple(allow))))


def _checked(params, allow, count: int) -> tuple[int, ...]:
    """`params` as a tuple, of `count` arguments."""
    if allow not in ((), []) and allow not in (ALLOW, list(ALLOW)):
        raise ValueError(f"certify: allow is {allow!r}, expected () or {ALLOW}")
    try:
        found = tuple(map(operator.index, np.atleast_1d(params).tolist()))
        if any(isinstance(i, bool) for i in found):
            raise TypeError
    except (TypeError, ValueError):
        found = (-1,)
    if not all(0 <= i < count for i in found):
        raise ValueError(
            f"certify: params is {params!r}, expected numbers of arguments, below "
            f"{count}"
        )
    return found


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    try:
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            if getattr(leaf.dtype, "kind", "") in tuple("OSUMm"):
                raise TypeError
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return jax.eval_shape(lambda: jax.numpy.asarray(leaf))
    except TypeError:
        raise ValueError(
            f"certify: got {leaf!r} among the arguments, expected arrays, numbers or "
            "shapes with dtypes"
        ) from None
