"""allow=("input",): products of parameters with the untouched input, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from a2os2a_jax.analysis.audit import certify

X = jax.ShapeDtypeStruct((4, 3), jnp.float32)
W = jax.ShapeDtypeStruct((3, 5), jnp.float32)


def fire(x):
    return (x >= 1).astype(x.dtype)


def ask(fn, *avals, allow=("input",), params=(0,)):
    return certify(fn, *(avals or (W, X)), allow=allow, params=params)


UNTOUCHED = {
    "as it is": lambda x: x,
    "reshaped": lambda x: x.reshape(2, 6).reshape(4, 3),
    "transposed": lambda x: x.T.T,
    "padded": lambda x: jnp.pad(x, ((0, 1), (0, 0))),
    "beside zeros": lambda x: jnp.concatenate([x, jnp.zeros((1, 3))]),
    "beside itself": lambda x: jnp.concatenate([x, x[::-1]]),
    "stacked": lambda x: jnp.stack([x, x]).reshape(8, 3),
    "sliced": lambda x: x[1:3],
    "gathered": lambda x: x[jnp.array([3, 0])],
    "cast": lambda x: x.astype(jnp.bfloat16).astype(jnp.float32),
    "broadcast": lambda x: jnp.broadcast_to(x, (2, 4, 3)).reshape(8, 3),
    "with nothing added": lambda x: x + 0.0 - 0.0,
    "times one": lambda x: 1.0 * x / 1.0,
    "in a loop": lambda x: lax.scan(lambda c, row: (c, row), 0, x)[1],
    "carried": lambda x: lax.fori_loop(0, 3, lambda _, c: c[::-1], x),
    "in jit": jax.jit(lambda x: x[::-1]),
    "remade": jax.checkpoint(lambda x: x[::-1]),
    "chosen by parameters": lambda x: lax.cond(True, lambda: x, lambda: x[::-1]),
    "behind a barrier": lambda x: lax.optimization_barrier(x),
}
TOUCHED = {
    "scaled": lambda x: x / 255,
    "halved": lambda x: x / 2,
    "negative": lambda x: -x,
    "shifted": lambda x: x - 0.5,
    "padded by one": lambda x: jnp.pad(x, ((0, 1), (0, 0)), constant_values=1),
    "filled": lambda x: x.at[jnp.array([9])].get(mode="fill", fill_value=2.0),
    "rounded": lambda x: jnp.round(x),
    "cast to integers": lambda x: x.astype(jnp.int32).astype(jnp.float32),
    "clipped": lambda x: jnp.clip(x, 0, 9),
    "largest": lambda x: x.max(0, keepdims=True),
    "pooled": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (2, 1), (1, 1), "VALID"
    ),
    "summed": lambda x: x.sum(0, keepdims=True),
    "chosen by data": lambda x: jnp.where(x > 0, x, x[::-1]),
    "chosen by one number": lambda x: lax.cond(x[0, 0] > 0, lambda: x, lambda: x[::-1]),
    "at a place of data": lambda x: lax.dynamic_slice(
        x, (x[0, 0].astype(int), 0), (1, 3)
    ),
    "carried and added to": lambda x: lax.fori_loop(0, 3, lambda _, c: c + x, x),
    "after a loop of data": lambda x: lax.while_loop(
        lambda c: c[0, 0] > 0, lambda c: c[::-1], x
    ),
    "a mixture": lambda x: jnp.concatenate([x, x + 1]),
}


@pytest.mark.parametrize("how", UNTOUCHED)
def test_the_input_stays_one_wherever_its_entries_go(how):
    move = UNTOUCHED[how]
    report = ask(lambda w, x: fire(move(x) @ w))
    assert report.addition_only, str(report)
    (product,) = report.products
    assert product.allowed and product.primitive == "dot_general"
    assert report.allowed == (product,) and not report.refused
    assert "permitted" in str(report) and product.place in report.summary()
    strict = ask(lambda w, x: fire(move(x) @ w), allow=())
    assert not strict.addition_only and strict.refused == strict.products


@pytest.mark.parametrize("how", TOUCHED)
def test_what_was_computed_is_the_input_no_longer(how):
    change = TOUCHED[how]
    report = ask(lambda w, x: fire(change(x) @ w))
    assert not report.addition_only
    assert "dot_general" in [o.primitive for o in report.refused], str(report)


def test_a_scaled_image_is_allowed_and_the_convolution_after_it_refused():
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 8), jnp.float32)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)

    def f(w, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        how = dict(dimension_numbers=numbers)
        return lax.conv_general_dilated(x / 255, w, (1, 1), "SAME", **how)

    report = ask(f, kernel, image)
    assert [o.primitive for o in report.allowed] == ["div"]
    assert [o.primitive for o in report.refused] == ["conv_general_dilated"]


def test_the_name_does_not_matter():
    def f(w, pixels):
        return pixels @ w

    assert ask(f).addition_only

    def g(w, x):
        input = x + 1
        with jax.named_scope("input"):
            return input @ w

    assert not ask(g).addition_only
    named = jax.jit(lambda w, input: input @ w)
    assert not ask(lambda w, x: named(w, x + 1)).addition_only


def test_neither_does_the_tree_it_comes_in():
    report = ask(lambda w, x: x["a"][0] @ w, W, {"a": [X]})
    assert report.addition_only
    assert report.inputs == ("argument 1['a'][0]: float32[4, 3]",)


def test_a_product_of_two_inputs_is_none_with_parameters():
    for fn in (lambda x, y: x * y, lambda x, y: x @ y.T, lambda x, y: x * x):
        assert not ask(fn, X, X, params=()).addition_only
    assert not ask(lambda w, x, y: jnp.where(w[0, 0] > 0, x, y) @ w, W, X, X).allowed


def test_a_product_with_weights_that_data_chose_is_none_with_parameters():
    report = ask(lambda w, x: x @ jnp.where(x[0, 0] > 0, w, -w))
    assert not report.addition_only and not report.allowed


def test_the_second_product_is_refused():
    square = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    report = ask(lambda w, x: x @ w @ w, square, X)
    assert len(report.allowed) == len(report.refused) == 1


def test_spikes_as_input_need_no_permission():
    events = jax.ShapeDtypeStruct((4, 3), jnp.bool_)
    report = ask(lambda w, x: x.astype(jnp.float32) @ w, W, events, allow=())
    assert report.addition_only and not report.products


def test_an_image_of_bytes_is_multiplied_by():
    image = jax.ShapeDtypeStruct((4, 3), jnp.uint8)

    def fn(w, x):
        return x.astype(jnp.float32) @ w

    assert ask(fn, W, image).addition_only
    (product,) = ask(fn, W, image, allow=()).refused
    assert product.kind == "integer product"


def test_powers_of_two_need_no_permission():
    powers = np.float32([[1, 2], [0.5, 0], [-4, 1]])
    report = ask(lambda x: x @ powers, X, params=(), allow=())
    assert report.addition_only and report.counts["shift"] == 4 * 3 * 2
