"""What is counted while a program runs is what loops in numpy count, addition by
addition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax import models
from a2os2a_jax.analysis import activity
from a2os2a_jax.analysis.audit import rules
from tests.analysis import brute_force as loops
from tests.analysis.test_brute_force import BATCH, OPTIONS, SIZE, T, made

pytestmark = pytest.mark.usefixtures("quick_compilation")


def by_place(tallies, which):
    """{place: additions that are made}, of all kinds of addition."""
    total: dict[str, int] = {}
    for t in tallies:
        o = t.operation
        if o.kind == rules.ADDITION and not o.of:
            number = getattr(t, which) if t.driven else t.dense
            total[o.path] = total.get(o.path, 0) + number
    return {place: n for place, n in total.items() if n}


MODELS = {
    "static": ("columnar", dict(order="qk_v"), {}),
    "static, q_kv": ("columnar", dict(order="q_kv"), {"order": "q_kv"}),
    "events": ("columnar", dict(order="qk_v"), {"order": "qk_v"}),
    "spike_driven": ("spike_driven", dict(v_th=2.0, attention_v_th=1.0), None),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_addition_of_a_model_is_counted(name, x64):
    family, how, attention = MODELS[name]
    options = dict(OPTIONS, dtype="float64")
    if attention is not None:
        options["attention"] = {"kind": "a2os2a", "order": "qk_v"} | attention
    model = models.build(family, "1-16", **options)
    shape = (BATCH, T, SIZE, SIZE, 3) if name == "events" else (BATCH, SIZE, SIZE, 3)
    images = np.random.default_rng(1).normal(size=shape)
    folded, variables = models.fold(model, made(model, images))
    counter = activity.Counter(folded.apply)
    logits = counter(variables, jnp.asarray(images))
    params = jax.tree.map(np.asarray, variables["params"])
    how = how | dict(family=family, timesteps=T, heads=2, pool="0011")
    want, *counts = loops.count(params, images, **how)
    np.testing.assert_allclose(logits, want, rtol=1e-10, atol=1e-10)
    for which, expected in zip(("events", "nonzero"), counts, strict=True):
        expected = {place: n for place, n in expected.items() if n}
        assert by_place(counter.tallies, which) == expected
    spared = [t for t in counter.tallies if t.nonzero < t.events]
    assert {t.operation.path for t in spared} <= {"block_0/attention"}
    assert bool(spared) == (family == "columnar")


def spikes(key, shape, share=0.3):
    return jax.random.bernoulli(jax.random.key(key), share, shape)


def test_batches_add_up_whatever_their_size():
    def fn(w, x):
        return (x > 0).astype(jnp.float32) @ w

    w, x = jnp.ones((5, 7)), jax.random.normal(jax.random.key(0), (6, 5))
    whole, parts = activity.Counter(fn), activity.Counter(fn)
    whole(w, x)
    for part in (x[:4], x[4:]):
        parts(w, part)
    assert [t[1:] for t in whole.tallies] == [t[1:] for t in parts.tallies]
    (sums,) = (t for t in whole.tallies if t.driven)
    assert (sums.dense, sums.events) == (6 * 5 * 7, int((x > 0).sum()) * 7)


def test_inside_a_scan_and_calls():
    @jax.jit
    def inner(w, s):
        return jax.checkpoint(lambda w, s: s @ w)(w, s)

    def fn(w, x):
        def step(carry, x_t):
            s = (x_t > 0).astype(jnp.float32)
            return carry + inner(w, s), s

        return jax.lax.scan(step, jnp.zeros((2, 3)), x)[0]

    x = jax.random.normal(jax.random.key(0), (4, 2, 5))
    counter = activity.Counter(fn)
    out = counter(jnp.ones((5, 3)), x)
    np.testing.assert_allclose(out, fn(jnp.ones((5, 3)), x), rtol=1e-6)
    (sums,) = (t for t in counter.tallies if t.driven)
    assert (sums.dense, sums.events) == (4 * 2 * 5 * 3, int((x > 0).sum()) * 3)


def test_of_two_spikes_the_rarer_one_drives():
    def fn(a, b):
        return jnp.einsum("bnd,bmd->bnm", a, b, preferred_element_type=jnp.float32)

    a, b = spikes(0, (2, 3, 8), 0.1), spikes(1, (2, 5, 8), 0.8)
    counter = activity.Counter(functools.partial(fn), params=())
    counter(a, b)
    (sums,) = (t for t in counter.tallies if t.driven)
    assert sums.events == int(a.sum()) * 5
    together = np.einsum("bnd,bmd->", a.astype(int), b.astype(int))
    assert sums.nonzero == together < sums.events


def test_which_of_two_spikes_is_rarer_is_judged_in_the_end():
    def fn(a, b):
        return jnp.einsum("bnd,bmd->bnm", a, b, preferred_element_type=jnp.float32)

    ones, none = jnp.ones((1, 3, 8), bool), jnp.zeros((1, 3, 8), bool)
    whole, parts = (activity.Counter(fn, params=()) for _ in range(2))
    whole(jnp.concatenate([ones, none]), jnp.concatenate([none, ones]))
    parts(ones, none)
    parts(none, ones)
    assert [t[1:] for t in whole.tallies] == [t[1:] for t in parts.tallies]
    (sums,) = (t for t in whole.tallies if t.driven)
    assert (sums.events, sums.nonzero) == (3 * 8 * 3, 0)


def test_a_grouped_strided_convolution():
    def fn(w, x):
        return jax.lax.conv_general_dilated(
            x.astype(jnp.float32),
            w,
            (2, 1),
            [(1, 1), (0, 2)],
            rhs_dilation=(1, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    w, x = jnp.ones((3, 2, 2, 6)), spikes(0, (2, 7, 6, 4))
    counter = activity.Counter(fn)
    out = counter(w, x)
    (sums,) = (t for t in counter.tallies if t.driven)
    assert sums.events == int(out.sum())  # every weight is 1, and so is every spike
    ones = activity.Counter(fn)
    full = ones(w, jnp.ones_like(x))
    assert sums.dense == int(full.sum())


def test_large_counts_do_not_overflow():
    def fn(w, s):
        return s.astype(jnp.float32) @ w

    counter = activity.Counter(fn)
    s, w = jnp.ones((1, 3000, 16), bool), jnp.ones((16, 50_000))
    counter(w, s)
    (sums,) = (t for t in counter.tallies if t.driven)
    assert sums.events == sums.dense == 3000 * 16 * 50_000 > 2**31


def test_what_becomes_of_the_outputs_is_not_counted():
    counter = activity.Counter(lambda w, s: s @ w, then=lambda out: out.sum())
    s = spikes(0, (3, 4)).astype(jnp.float32)
    total = counter(jnp.ones((4, 2)), s)
    plain = activity.Counter(lambda w, s: s @ w)
    out = plain(jnp.ones((4, 2)), s)
    assert total == out.sum()
    assert [t[1:] for t in counter.tallies] == [t[1:] for t in plain.tallies]


def test_nothing_seen_is_nothing_counted():
    assert activity.Counter(lambda w, x: x @ w).tallies == []


def test_another_program_is_not_added():
    def fn(w, x):
        return x + 2 if len(x) > 1 else jnp.abs(x) + x + 2

    counter = activity.Counter(fn)
    counter(1.0, jnp.ones(2))
    with pytest.raises(ValueError, match="the same program"):
        counter(1.0, jnp.ones(1))
