"""What each primitive does to alphabets, and what it costs: one rule per primitive.

A rule gets a `Site` (the equation, what is known of its operands, and a place to charge
operations to) and returns what is known of the results. A primitive without a rule, or
with a program in its parameters that its rule does not read, is never proven: its
result is real, and it is charged as unknown.
"""

import math

import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from a2os2a_jax.analysis.audit import domain
from a2os2a_jax.analysis.audit.domain import Value
from a2os2a_jax.analysis.audit.rules import choices, moves, products, sums
from a2os2a_jax.analysis.audit.rules.site import (
    ADDITION,
    BITWISE,
    COMPARISON,
    FOLDABLE,
    FREE,
    INTEGER_PRODUCT,
    MULTIPLICATION,
    REFUSED,
    SELECT,
    SHIFT,
    STATE,
    UNKNOWN,
    Rule,
    Site,
)
from a2os2a_jax.analysis.audit.rules.windows import reach, taps

__all__ = [
    "ADDITION",
    "BITWISE",
    "COMPARISON",
    "FOLDABLE",
    "FREE",
    "INTEGER_PRODUCT",
    "MOVES",
    "MULTIPLICATION",
    "NONLINEAR",
    "PURE",
    "REFUSED",
    "RULES",
    "SELECT",
    "SHIFT",
    "STATE",
    "UNKNOWN",
    "Rule",
    "Site",
    "apply",
    "reach",
    "taps",
]

MOVES = """reshape tile transpose broadcast_in_dim squeeze slice rev copy name
    stop_gradient optimization_barrier sharding_constraint device_put
    reshard pvary""".split()
NONLINEAR = """exp exp2 expm1 log log1p sqrt rsqrt cbrt tanh tan sin cos asin acos atan
    sinh cosh asinh acosh atanh atan2 logistic erf erfc erf_inv lgamma digamma
    cumlogsumexp""".split()


def _all(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = (
    dict.fromkeys(MOVES, moves.move)
    | dict.fromkeys(NONLINEAR, products.nonlinear)
    | _all("split unstack", moves.move_all)
    | _all("stack concatenate pad", moves.join)
    | _all("eq ne lt le gt ge", choices.compare)
    | _all("and or xor not", choices.logic)
    | _all("reduce_and reduce_or reduce_xor", choices.reduce_logic)
    | _all("floor ceil round", choices.round_off)
    | _all("reduce_max reduce_min cummax cummin", choices.compare_all)
    | _all("reduce_window_max reduce_window_min", choices.window_extreme)
    | _all("max min", choices.extreme)
    | _all("argmax argmin", choices.index_of)
    | _all("shift_left shift_right_logical shift_right_arithmetic", choices.shift)
    | _all("add add_any sub", sums.add)
    | _all("reduce_prod cumprod", products.reduce_product)
    | _all("integer_pow square", products.power)
    | _all("exp2 pow", products.two_to)
    | {
        "gather": moves.indexed(lambda s: [1]),
        "dynamic_slice": moves.indexed(lambda s: range(1, len(s.ins))),
        "dynamic_update_slice": moves.indexed(
            lambda s: range(2, len(s.ins)), join=True
        ),
        "scatter": moves.indexed(lambda s: [1], join=True),
        "scatter-add": moves.scatter_add,
        "convert_element_type": moves.convert,
        "reduce_precision": moves.reduce_precision,
        "bitcast_convert_type": moves.bitcast,
        "iota": moves.iota,
        "neg": sums.negate,
        "reduce_sum": sums.reduce_sum,
        "cumsum": sums.cumulative_sum,
        "reduce_window_sum": sums.window_sum,
        "mul": products.multiply,
        "div": products.divide,
        "rem": choices.remainder,
        "dot_general": products.dot,
        "conv_general_dilated": products.convolve,
        "clamp": choices.clamp,
        "select_n": choices.select,
        "sign": choices.sign,
        "abs": choices.absolute,
        "is_finite": choices.finite,
    }
)
# Without a rule, and yet the same at every call if the operands are; nothing else is
# taken for a constant because its operands are.
PURE = """sort top_k fft cholesky lu qr eigh svd triangular_solve custom_linear_solve
    population_count clz
    nextafter reduce reduce_window select_and_scatter select_and_scatter_add
    select_and_gather_add scatter scatter-add scatter_add scatter_mul scatter_min
    scatter_max bessel_i0e bessel_i1e igamma igammac polygamma zeta
    regularized_incomplete_beta complex real imag conj random_bits random_seed
    random_split random_fold_in random_wrap random_unwrap random_gamma threefry2x32
    rng_bit_generator""".split()


def apply(site: Site) -> list[Value]:
    """What is known of the results of a primitive that is no call of a program."""
    rule, why = RULES.get(site.name), None
    if rule is None:
        why = "no rule for this primitive"
    elif _complex(site) and site.name not in MOVES:
        why = "no rule for complex numbers"
    elif _programs(site) and not _is_scatter_add(site):
        why = "runs a program that its rule does not read"
    if why is not None:
        return _unknown(site, why)
    result = rule(site)
    return result if isinstance(result, list) else [result]


def _unknown(site: Site, why: str) -> list[Value]:
    data = site.name not in PURE or any(v.data for v in site.ins)
    count = max([1, *map(_size, site.eqn.outvars)])
    site.charge(UNKNOWN, count, why=why, force=data)
    return [
        Value(domain.of_dtype(getattr(v.aval, "dtype", None)), data)
        for v in site.eqn.outvars
    ]


def _programs(site: Site) -> list:
    return list(jaxprs_in_params(site.eqn.params))


def _is_scatter_add(site: Site) -> bool:
    """That of jnp's .at[].add: its program is one sum of its two arguments."""
    if site.name not in ("scatter-add", "scatter_add"):
        return False
    (program,) = _programs(site)
    jaxpr = getattr(program, "jaxpr", program)
    if len(jaxpr.eqns) != 1 or jaxpr.eqns[0].primitive.name not in ("add", "add_any"):
        return False
    eqn = jaxpr.eqns[0]
    return set(eqn.invars) == set(jaxpr.invars) and eqn.outvars == list(jaxpr.outvars)


def _size(var) -> int:
    return math.prod(getattr(var.aval, "shape", ()))


def _complex(site: Site) -> bool:
    avals = [v.aval for v in (*site.eqn.invars, *site.eqn.outvars)]
    return any(
        jnp.issubdtype(getattr(a, "dtype", bool), jnp.complexfloating) for a in avals
    )
