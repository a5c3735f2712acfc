"""A folded model as one ONNX file, by the converter jax2onnx.

    model, variables = models.fold(model, variables)
    onnx.save(model, variables, "digits.onnx")

jax2onnx has an operator for every primitive of a folded model, but its own tracing
stops at arrays at rest whose shape holds the symbolic batch, and it makes of a max-pool
over channels-last images one over four axes, which onnxruntime refuses. So the program
is traced here and written out before it is handed on: T steps in a row, calls in their
callers, windows as maxima of slices.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax
from jax.extend import core

from a2os2a_jax.files import expanded, write_atomically
from a2os2a_jax.models.columnar import Columnar

INPUT, OUTPUT = "images", "logits"
OPSET = 23


def save(
    model: Columnar,
    variables: Mapping[str, Any],
    path: str | os.PathLike,
    *,
    sequence: bool = False,
    per_step: bool = False,
) -> None:
    """Writes all of the file or none of it; an existing one stays as it is.

    The file has one input, "images", and one output, "logits" [batch, classes], for any
    batch of at least one; T is the model's, and written out.

    Args:
      model, variables: as `models.fold` makes them; dtype float32, or float64, whose
        convolutions onnxruntime has not.
      path: ends in .onnx.
      sequence: images are [batch, T, H, W, C] (with the stem `tokens`
        [batch, T, N, F]), not one frame [batch, H, W, C] that is shown T times.
      per_step: logits are those of each step, [batch, T, classes].
    Raises:
      ValueError: another suffix, a model that is not folded, bfloat16, no number of
        tokens, an operation that jax2onnx has not.
      FileExistsError: the file is there already.
      ImportError: jax2onnx is missing.
      OSError: it cannot be written.
    """
    path = expanded(path)
    _check(model, path)
    if path.exists():
        raise FileExistsError(f"onnx {path}: got a file that exists, expected none")
    if model.stem != "tokens":
        frame = (model.image_size, model.image_size, model.in_channels)
    else:
        frame = (model.tokens, model.in_channels)
    steps = (model.timesteps,) if sequence else ()
    (batch,) = export.symbolic_shape("batch", constraints=["batch >= 1"])
    images = jax.ShapeDtypeStruct((batch, *steps, *frame), model.dtype)

    def run(images):
        return model.apply(variables, images, per_step=per_step)

    data = _convert(written_out(run, images), images, path).SerializeToString()
    with write_atomically(path) as temp:
        temp.write_bytes(data)


def _check(model: Columnar, path: Path) -> None:
    """ValueError for what has no place in such a file."""
    if path.suffix != ".onnx":
        raise ValueError(f"onnx {path}: got suffix {path.suffix!r}, expected .onnx")
    if getattr(model, "folded", None) is None:
        raise ValueError(
            f"onnx {path}: got a {type(model).__name__} that is not folded, expected "
            "what models.fold makes"
        )
    if model.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"onnx {path}: got a model in {jnp.dtype(model.dtype).name}, expected "
            "float32"
        )
    if model.stem == "tokens" and model.tokens is None:
        raise ValueError(
            f"onnx {path}: got no number of tokens, expected models.fold(..., tokens=N)"
        )


def _convert(program: core.ClosedJaxpr, images: jax.ShapeDtypeStruct, path: Path):
    """The onnx.ModelProto, checked."""
    with _silent():
        try:
            import jax2onnx
            from onnx import checker
        except ImportError as error:
            raise ImportError(
                f"onnx {path}: needs jax2onnx: pip install jax2onnx"
            ) from error
        try:
            proto = jax2onnx.to_onnx(
                core.jaxpr_as_fun(program),
                [images],
                model_name="a2os2a_jax",
                opset=OPSET,
                enable_double_precision=images.dtype == jnp.float64,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
            checker.check_model(proto, full_check=True)
        except Exception as error:  # each of its many parts raises its own
            text = " ".join(str(error).split())[:160]
            raise ValueError(f"onnx {path}: jax2onnx: {text}") from error
    return proto


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what the converter logs of its own parts, hundreds of lines."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


# ---- a program without calls, loops and windows

CALLS = {  # primitive: the parameter that holds the program
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "remat": "jaxpr",
}


def written_out(fn: Callable, *shapes: jax.ShapeDtypeStruct) -> core.ClosedJaxpr:
    """The program of fn at these shapes, call by call and step by step in a row.

    Values are the same to the last bit: only what is computed once is written so often
    as it is computed. Gradients are not kept.
    """
    program = jax.make_jaxpr(fn)(*shapes)
    return jax.make_jaxpr(lambda *args: _run(program, args))(*shapes)


def _run(program: core.ClosedJaxpr | core.Jaxpr, args: Sequence[Any]) -> list[Any]:
    closed = isinstance(program, core.ClosedJaxpr)
    jaxpr, consts = (program.jaxpr, program.consts) if closed else (program, ())
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= zip(jaxpr.invars, args, strict=True)

    def read(var):
        return var.val if isinstance(var, core.Literal) else values[var]

    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inputs = [read(var) for var in equation.invars]
        if name in CALLS:
            outputs = _run(params[CALLS[name]], inputs)
        elif name in SPECIAL:
            outputs = SPECIAL[name](*inputs, **params)
        else:
            outputs = equation.primitive.bind(*inputs, **params)
            if not equation.primitive.multiple_results:
                outputs = [outputs]
        values |= zip(equation.outvars, outputs, strict=True)
    return [read(var) for var in jaxpr.outvars]


def _scan(*inputs, jaxpr, length, reverse, **params):
    """As many rounds as there are, one after the other."""
    if "ft_in" in params:  # jax from 0.11
        groups = params["ft_in"].unpack()[:2]
        num_consts, num_carry = (len(group.vals) for group in groups)
    else:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    first = num_consts + num_carry
    consts, carry, xs = inputs[:num_consts], inputs[num_consts:first], inputs[first:]
    rounds = []
    for t in reversed(range(length)) if reverse else range(length):
        here = (lax.index_in_dim(x, t, keepdims=False) for x in xs)
        outputs = _run(jaxpr, [*consts, *carry, *here])
        carry = outputs[:num_carry]
        rounds.append(outputs[num_carry:])
    rows = zip(*(reversed(rounds) if reverse else rounds), strict=True)
    # Not jnp.stack, for whose primitive old converters have nothing.
    return [*carry, *(lax.concatenate([y[None] for y in row], 0) for row in rows)]


def _window_max(x, *, window_dimensions, window_strides, padding, **dilations):
    """Maxima of slices, one axis after the other; at the border of copies.

    A copy of the outermost value in place of minus infinity: every window that reaches
    over the border holds that value anyway.
    """
    for axis, (size, stride, (low, high)) in enumerate(
        zip(window_dimensions, window_strides, padding, strict=True)
    ):
        if size == stride == 1:
            continue
        if max(low, high) >= size or any(set(d) != {1} for d in dilations.values()):
            raise ValueError(
                "onnx: got a dilated or wider padded window, expected none"
            )
        first = lax.slice_in_dim(x, 0, 1, axis=axis)
        last = lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
        x = lax.concatenate([*[first] * low, x, *[last] * high], axis)
        stop = x.shape[axis] - size + 1
        parts = [lax.slice_in_dim(x, i, i + stop, stride, axis) for i in range(size)]
        x = functools.reduce(lax.max, parts)
    return [x]


def _shift_right(x, by, **params):
    """With a shift for each number: of a single one jax2onnx mistakes the shape."""
    by = jnp.broadcast_to(by, x.shape)
    return [lax.shift_right_arithmetic_p.bind(x, by, **params)]


SPECIAL = {
    "name": lambda x, **_: [x],  # checkpoint_name, which computes nothing
    "reduce_window_max": _window_max,
    "scan": _scan,
    "shift_right_arithmetic": _shift_right,
}
