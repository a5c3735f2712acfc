"""What passes, at what price; and what is refused, where, with what to do about it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from a2os2a_jax import models
from a2os2a_jax.analysis.audit import certify
from a2os2a_jax.functional import attention, neurons, spikes

X = jax.ShapeDtypeStruct((4, 3), jnp.float32)
W = jax.ShapeDtypeStruct((3, 5), jnp.float32)
ADDITIONS, SHIFTS, SELECTS = "addition", "shift", "select"


def fire(x):
    return (x >= 1).astype(x.dtype)


def ternary(x):
    return jnp.sign(x) * (jnp.abs(x) >= 1)


def heads(x):
    """[4, 3] -> [N 4, heads 1, d 3]."""
    return x[:, None]


# ---- passes: name -> (function of weights and data, {kind: operations}), where kinds
# that are not named are not looked at


def bitnet(w, x):
    """A layer of ternary weights, made inside from real ones."""
    t = jnp.sign(w) * (jnp.abs(w) > jnp.abs(w).mean())
    return x @ t


def one_hot(w, x):
    chosen = jax.nn.one_hot(x.argmax(1), 3)
    return chosen @ w


def bits(w, x):
    """An integer product as additions of shifted numbers: priced, so it may pass."""
    a, b = jnp.round(x).astype(jnp.int32), jnp.round(x[::-1]).astype(jnp.int32)
    return sum(((a >> i) & 1) * (b << i) for i in range(32))


def unrolled(w, x):
    for _ in range(5):
        x = x + x[::-1]
    return x


def lif(w, x):
    return neurons.unroll(neurons.lif_step, neurons.lif_init, x)


def ternary_lif(w, x):
    return neurons.unroll(neurons.ternary_step, neurons.ternary_init, x)


def attend(order):
    def f(w, x):
        q, k, v = fire(x), jax.nn.relu(x), ternary(x)
        return attention.a2os2a(*map(heads, (q, k, v)), order)

    return f


def shifted_attention(w, x):
    q, k, v = fire(x), fire(x + 1), ternary(x)
    return attention.shift_attention(*map(heads, (q, k, v)))


def sdsa(w, x):
    return attention.sdsa(*map(heads, (fire(x), fire(x + 1), fire(x - 1))), fire)


def slots(w, x):
    """W s as the sum of W slot, of an integer neuron."""
    s = jnp.clip(jnp.round(x), 0, 4)
    return spikes.collapse(spikes.expand(s, 4) @ w)


def nested(w, x):
    @jax.jit
    @jax.checkpoint
    def inner(c, row):
        c = lax.cond(row[0] > 0, lambda c: c + row, lambda c: c, c)
        return c, fire(c) @ w

    return lax.scan(inner, jnp.zeros(3), x)[1]


PASSES = {
    "loop of additions": (
        lambda w, x: lax.fori_loop(0, 5, lambda _, c: c + x, x), {ADDITIONS: 60}),
    "while of additions": (
        lambda w, x: lax.while_loop(
            lambda c: c[0] < 5, lambda c: (c[0] + 1, c[1] + x), (0, x))[1],
        {ADDITIONS: 60}),
    "loop in a loop": (
        lambda w, x: lax.fori_loop(
            0, 3, lambda _, c: lax.fori_loop(0, 2, lambda _, d: d + x, c), x),
        {ADDITIONS: 72}),
    "loop of no round": (
        lambda w, x: lax.fori_loop(0, 0, lambda _, c: c * x, x), {}),
    "additions written out": (unrolled, {ADDITIONS: 60}),
    "sum of copies": (
        lambda w, x: jnp.broadcast_to(x, (7, 4, 3)).sum(0), {ADDITIONS: 84}),
    "spikes on weights": (lambda w, x: fire(x) @ w, {ADDITIONS: 60}),
    "ternary spikes on weights": (lambda w, x: ternary(x) @ w, {ADDITIONS: 60}),
    "ternary weights": (bitnet, {ADDITIONS: 60}),
    "integer spikes in slots": (slots, {ADDITIONS: 4 * 60 + 80}),
    "choice of a row": (one_hot, {ADDITIONS: 60}),
    "product bit by bit": (bits, {SHIFTS: 64 * 12, SELECTS: 32 * 12}),
    "half": (lambda w, x: 0.5 * x - x / -8, {SHIFTS: 24, ADDITIONS: 12}),
    "halves of columns": (lambda w, x: x * np.float32([[1, -4, 0]]), {SHIFTS: 12}),
    "bits moved": (lambda w, x: -x.T[::-1].reshape(12), {"bitwise": 12}),
    "mask": (lambda w, x: x * np.float32([[1, 0, 1]]), {SELECTS: 12}),
    "mask of data": (lambda w, x: x * fire(x), {SELECTS: 12}),
    "sign": (lambda w, x: x * jnp.sign(x), {SELECTS: 12}),
    "signs": (lambda w, x: x * np.float32([[-1, 0, 1]]), {SELECTS: 12}),
    "minus one": (lambda w, x: -1 * x, {"bit operation": 0, "bitwise": 12}),
    "one": (lambda w, x: 1 * x, {}),
    "exp2": (lambda w, x: x * jnp.exp2(jnp.round(x)), {SHIFTS: 24}),
    "pow": (lambda w, x: x / 2.0 ** jnp.floor(x), {SHIFTS: 24}),
    "shift by data": (
        lambda w, x: jnp.round(x).astype(jnp.int32) << jnp.sign(x).astype(jnp.int32),
        {SHIFTS: 12}),
    "one shifted by data": (
        lambda w, x: x * (1 << jnp.round(x).astype(jnp.int32)), {SHIFTS: 24}),
    "switch on data": (
        lambda w, x: lax.switch(
            x.argmax(), [lambda: x, lambda: x + x, lambda: x + 1]),
        {ADDITIONS: 24, SELECTS: 2}),
    "choices": (
        lambda w, x: jnp.where(x > 2, 0.3, jnp.where(x > 1, 0.1, 0)), {SELECTS: 24}),
    "vmap": (lambda w, x: jax.vmap(lambda row: fire(row) @ w)(x), {ADDITIONS: 60}),
    "nested": (nested, {ADDITIONS: 12 + 60, SELECTS: 4}),
    "lif": (lif, {ADDITIONS: 24, SHIFTS: 12, SELECTS: 12}),
    "ternary lif": (ternary_lif, {ADDITIONS: 36, SHIFTS: 12}),
    # 2 N² d and 2 N d² of N = 4 tokens and d = 3 channels, and one more x + 1 or two
    "attention": (attend("qk_v"), {ADDITIONS: 2 * 48}),
    "attention, other order": (attend("q_kv"), {ADDITIONS: 2 * 36}),
    "attention of shifts": (
        # and x + 1, the row's sum, and scores less their greatest
        shifted_attention, {ADDITIONS: 2 * 48 + 12 + 16 + 16}),
    "spike-driven attention": (sdsa, {ADDITIONS: 12 + 24}),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_passes_at_its_price(name):
    fn, price = PASSES[name]
    report = certify(fn, W, X)
    assert report.addition_only, str(report)
    assert not report.products
    assert report.verdict == "addition-only"
    for kind, count in price.items():
        assert report.counts.get(kind, 0) == count, (kind, report.counts)


def test_additions_have_the_width_of_their_sum():
    def f(w, x):
        return fire(x).astype(jnp.int8) @ jnp.ones((3, 5), jnp.int8)

    assert certify(f, W, X).price["addition"] == {8: 60}
    assert certify(PASSES["spikes on weights"][0], W, X).price["addition"] == {32: 60}


def test_a_shift_has_the_width_of_what_is_shifted():
    price = certify(lambda w, x: x.astype(jnp.bfloat16) * 0.5, W, X).price
    assert price["shift"] == {16: 12}


# ---- refused: name -> (function, what a line of the report says)


def softmax_attention(w, x):
    scores = fire(x) @ fire(x).T
    return jax.nn.softmax(scores) @ ternary(x)


def spike_residual(w, x):
    s = fire(x)
    s = s + fire(x - 1)
    return s @ w


def real_keys_and_values(w, x):
    return attention.a2os2a(*map(heads, (fire(x), jax.nn.relu(x), x)))


def real_keys_and_values_other_order(w, x):
    return attention.a2os2a(*map(heads, (fire(x), jax.nn.relu(x), x)), "q_kv")


def decay(w, x):
    def step(state, row):
        return neurons.lif_step(state, row, tau=1 / 0.7)

    return neurons.unroll(step, neurons.lif_init, x)


def scale(w, x):
    return fire((fire(x) @ w) * 0.1)


def mean_of_membranes(w, x):
    u = fire(x) @ w
    return u.mean(0) @ w.T


def batch_norm(w, x):
    mean, gain = w[:1], w[1:2] / jnp.sqrt(w[2:] + 1e-5)
    return fire((fire(x) @ w - mean) * gain)


REFUSED = {
    softmax_attention: "exp needs multiplications",
    spike_residual: "times integer [0, 2]: expand it into binary slots",
    real_keys_and_values: "data times data",
    real_keys_and_values_other_order: "data times data",
    decay: "a state's decay folds nowhere",
    scale: "fold it into the weights of test_verdicts.py",
    mean_of_membranes: "data times parameters",
    batch_norm: "times parameters, which could be folded; fold it into the weights of",
}


@pytest.mark.parametrize("fn", REFUSED, ids=lambda fn: fn.__name__)
def test_is_refused_where_it_is(fn):
    report = certify(fn, W, X)
    assert report.verdict == "not addition-only"
    text = str(report)
    assert REFUSED[fn] in text, text
    assert all(o.source for o in report.refused)
    # The place is ours, or that of the package's function which it calls.
    places = {o.source.split(":")[0].split("/")[0] for o in report.refused}
    assert places <= {"test_verdicts.py", "a2os2a_jax"}, places


def test_a_scale_before_a_threshold_folds_into_that():
    text = str(certify(lambda w, x: x * 0.1 >= 1, W, X))
    assert "fold it into the threshold at test_verdicts.py" in text


def test_a_scale_before_weights_folds_into_them():
    report = certify(lambda w, x: (fire(x) * 0.1) @ w, W, X)
    (scaled, product) = report.refused
    assert "fold it into the weights of test_verdicts.py" in scaled.advice
    assert scaled.kind == "foldable constant"
    assert product.kind == "multiplication"


def test_a_choice_by_data_among_parameters_is_data():
    def f(w, x):
        chosen = jnp.where(x[0, 0] > 0, w, -w)
        return x @ chosen

    (product,) = certify(f, W, X, allow=("input",)).products
    assert product.why == "data times data" and not product.allowed

    def g(w, x):
        chosen = lax.cond(x[0, 0] > 0, lambda: w, lambda: 2 * w)
        return x @ chosen

    (product,) = certify(g, W, X, allow=("input",)).products
    assert product.why == "data times data" and not product.allowed

    def h(w, x):
        chosen = lax.while_loop(lambda c: c[0, 0] < x[0, 0], lambda c: c + w, w)
        return x @ chosen

    report = certify(h, W, X, allow=("input",))
    assert not report.allowed and len(report.unknown) == 1


def test_a_choice_by_parameters_among_parameters_folds():
    def f(w, x):
        return fire(x) @ jnp.where(w[0, 0] > 0, w, 0.3 * w)

    report = certify(f, W, X)
    assert report.addition_only and report.folds


def model(family, **options):
    """(model, shapes of its variables, of an image)."""
    how = dict(image_size=8, num_classes=10, timesteps=3, heads=2) | options
    made = models.build(family, "1-16", **how)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    return made, jax.eval_shape(made.init, jax.random.key(0), image), image


def test_a_model_as_trained_says_what_to_fold_where():
    made, variables, image = model("columnar")
    report = certify(made.apply, variables, image, allow=("input",))
    assert [o.place for o in report.allowed] == ["stem/conv_0"]
    norms = {o.place: o.advice for o in report.refused if o.place.endswith("bn")}
    pairs = {"attention/q": "linear", "attention/proj": "linear", "mlp/fc2": "linear"}
    for name, before in pairs.items():
        advice = norms[f"block_0/{name}_bn"]
        assert advice == f"fold it into the weights of block_0/{name}_{before}"
    assert {o.place for o in report.refused if o.kind == "multiplication"} == {"head"}


@pytest.mark.parametrize("family", ["columnar", "spike_driven"])
@pytest.mark.parametrize("order", ["spikes", "bits"])
def test_a_folded_model_passes_but_for_the_first_convolution(family, order):
    made, variables, image = model(family)
    made, variables = models.fold(made, variables, head=order)
    report = certify(made.apply, variables, image, allow=("input",))
    assert report.addition_only, str(report)
    assert [o.place for o in report.products] == ["stem/conv_0"]
    assert not certify(made.apply, variables, image).addition_only


def test_counts_before_weights_are_integer_products():
    made, variables, image = model("columnar")
    made, variables = models.fold(made, variables, head="counts")
    report = certify(made.apply, variables, image, allow=("input",))
    assert [o.kind for o in report.refused] == ["integer product"]
    assert report.refused[0].place == "head"
