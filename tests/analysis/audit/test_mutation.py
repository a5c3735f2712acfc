"""Each result of a proven program is multiplied by 1.37 in turn: it is found, there."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import jaxpr_as_fun

from a2os2a_jax import models
from a2os2a_jax.analysis.audit import certify_jaxpr
from a2os2a_jax.analysis.audit.walk import needed, open_jaxpr, scan_counts
from a2os2a_jax.functional import attention, neurons

MARK, FACTOR = "planted", 1.37


def programs(eqn, wanted):
    """[(parameter, which of it, program, results that are needed)] in an equation."""
    found = []
    for key, held in eqn.params.items():
        several = held if isinstance(held, list | tuple) else [held]
        for i, program in enumerate(several):
            jaxpr, _ = open_jaxpr(program)
            if not hasattr(jaxpr, "eqns"):
                continue
            need = wanted
            if eqn.primitive.name == "scan":  # its carry is needed by itself
                _, carry = scan_counts(eqn)
                need = [True] * carry + list(wanted[carry:])
            elif eqn.primitive.name == "while":
                need = [True] * len(jaxpr.outvars)
            found.append((key, i if several is held else None, program, need))
    return found


def sites(jaxpr, need):
    """Ways to all floating results that something needs, at every depth: ((equation,
    parameter, which of it), ..., (equation, result))."""
    for i, (eqn, wanted) in enumerate(
        zip(jaxpr.eqns, needed(jaxpr, need), strict=True)
    ):
        if wanted is None:
            continue
        for j, (var, is_needed) in enumerate(zip(eqn.outvars, wanted, strict=True)):
            if is_needed and jnp.issubdtype(var.aval.dtype, jnp.floating):
                yield ((i, j),)
        for key, which, program, inner in programs(eqn, wanted):
            for site in sites(open_jaxpr(program)[0], inner):
                yield ((i, key, which), *site)


def plant(program, site):
    """The program with one result multiplied."""
    jaxpr, _ = open_jaxpr(program)
    first, *rest = site
    eqns = list(jaxpr.eqns)
    eqn = eqns[first[0]]
    if rest:
        _, key, which = first
        held = eqn.params[key]
        if which is None:
            new = plant(held, rest)
        else:
            new = list(held)
            new[which] = plant(held[which], rest)
            new = type(held)(new)
        eqns[first[0]] = eqn.replace(params={**eqn.params, key: new})
    else:
        result = eqn.outvars[first[1]]
        before, product = scaled(result.aval.shape, result.aval.dtype)
        outvars = list(eqn.outvars)
        outvars[first[1]] = before
        eqns[first[0] : first[0] + 1] = [
            eqn.replace(outvars=outvars),
            product.replace(outvars=[result]),
        ]
    jaxpr = jaxpr.replace(eqns=eqns)
    return program.replace(jaxpr=jaxpr) if hasattr(program, "jaxpr") else jaxpr


@functools.cache
def scaled(shape, dtype):
    """(variable, equation that multiplies it), of a name that no rule looks at."""

    def f(x):
        with jax.named_scope(MARK):
            return x * FACTOR

    closed = jax.make_jaxpr(f)(jax.ShapeDtypeStruct(shape, dtype))
    (product,) = closed.jaxpr.eqns
    (before,) = closed.jaxpr.invars
    return before, product


def mutants(fn, *avals):
    """(closed jaxpr, numbers of flat arguments that are parameters, sites)."""
    closed = jax.make_jaxpr(fn)(*avals)
    params = tuple(range(len(jax.tree.leaves(avals[0]))))
    jaxpr = closed.jaxpr
    return closed, params, list(sites(jaxpr, [True] * len(jaxpr.outvars)))


def check_all(fn, *avals, allow=(), least):
    """(how many are products, how many fold)."""
    closed, params, where = mutants(fn, *avals)
    report = certify_jaxpr(closed, params, allow)
    assert report.addition_only, str(report)
    assert MARK not in str(report)
    assert len(where) >= least
    found = folded = 0
    for site in where:
        report = certify_jaxpr(plant(closed, site), params, allow)
        marked = [o for o in report.operations if MARK in o.path]
        assert marked, f"nothing is found of what was planted at {site}"
        if all(o.folds for o in marked):
            assert set(marked) <= set(report.folds)
            folded += 1
            continue
        here = [o for o in report.products if o in marked]
        assert here, f"no product is found of what was planted at {site}"
        assert not report.addition_only, str(report)
        assert MARK in str(report)
        assert all(o.allowed for o in here) or MARK in report.summary()
        found += 1
    assert found + folded == len(where)
    return found, folded


X = jax.ShapeDtypeStruct((3, 4, 6), jnp.float32)
W = jax.ShapeDtypeStruct((6, 6), jnp.float32)


def layer(kind):
    step, init = getattr(neurons, f"{kind}_step"), getattr(neurons, f"{kind}_init")

    def f(w, x):
        s = neurons.unroll(step, init, x)
        return neurons.unroll(step, init, s @ w) @ w

    return f


@pytest.mark.parametrize("kind", ["lif", "ternary", "if", "guo"])
def test_in_neurons(kind):
    found, _ = check_all(layer(kind), W, X, least=10)
    assert found >= 10


@pytest.mark.parametrize("order", ["qk_v", "q_kv"])
def test_in_attention(order):
    def f(w, x):
        q, k, v = (
            neurons.unroll(neurons.lif_step, neurons.lif_init, x),
            jax.nn.relu(x),
            neurons.unroll(neurons.ternary_step, neurons.ternary_init, x),
        )
        heads = (3, 4, 2, 3)
        out = attention.a2os2a(*(a.reshape(heads) for a in (q, k, v)), order)
        return neurons.unroll(neurons.lif_step, neurons.lif_init, out)

    check_all(f, W, X, least=25)


def test_in_all_kinds_of_programs_in_programs():
    @jax.custom_jvp
    def custom(c):
        return jnp.maximum(c, 0)

    custom.defjvp(lambda c, t: (custom(*c), *t))

    @jax.custom_vjp
    def custom_back(c):
        return c + 1

    custom_back.defvjp(lambda c: (custom_back(c), None), lambda _, g: (g,))

    @jax.jit
    @jax.checkpoint
    def step(c, row):
        c = lax.cond(row[0, 0] > 0, lambda c: c + row, lambda c: c / 2, c)
        c = lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, -s[1]), (0, c))[1]
        return custom_back(c), (custom(c) >= 1).astype(c.dtype)

    def f(w, x):
        last, s = lax.scan(step, jnp.zeros((4, 6)), x)
        return last, jax.vmap(lambda row: row @ w)(s.reshape(12, 6))

    found, folded = check_all(f, W, X, least=15)
    assert folded >= 1  # the zeros at the start


MODELS = {
    "columnar": ("columnar", {}, (1, 8, 8, 3)),
    "columnar, q_kv, events": (
        "columnar",
        {"attention": {"kind": "a2os2a", "order": "q_kv"}},
        (1, 2, 8, 8, 3),
    ),
    "spike_driven": ("spike_driven", {}, (1, 8, 8, 3)),
}


@pytest.mark.parametrize(
    "name",
    [
        name if name == "columnar" else pytest.param(name, marks=pytest.mark.slow)
        for name in MODELS
    ],
)
def test_in_folded_models(name):
    family, options, shape = MODELS[name]
    options = dict(image_size=8, num_classes=10, timesteps=2, heads=2) | options
    model = models.build(family, "1-16", **options)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    model, variables = models.fold(model, variables)
    found, folded = check_all(
        model.apply, variables, images, allow=("input",), least=100
    )
    assert found > 3 * folded


def test_nothing_is_found_where_nothing_multiplies():
    # The test of this test: the mark alone is no product, and a plant changes results.
    closed, params, where = mutants(lambda w, x: x + 1, W, X)
    assert where == [((0, 0),)]
    (plain,) = jaxpr_as_fun(closed)(jnp.ones((6, 6)), jnp.ones((3, 4, 6)))
    mutant = plant(closed, where[0])
    (more,) = jaxpr_as_fun(mutant)(jnp.ones((6, 6)), jnp.ones((3, 4, 6)))
    assert jnp.allclose(more, FACTOR * plain)

    def marked(w, x):
        with jax.named_scope(MARK):
            return x + 1

    assert certify_jaxpr(jax.make_jaxpr(marked)(W, X), (0,)).addition_only
