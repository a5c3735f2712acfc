"""Compiling takes most of the time of these tests: options that make it shorter."""

import functools

import jax
import jax.numpy as jnp

QUICK = {"xla_backend_optimization_level": 0}  # half as long
_QUICKER = QUICK | {"xla_cpu_use_fusion_emitters": False}  # and half again


@functools.cache
def quick_options():
    """_QUICKER, or QUICK where the compiler has no such option any more."""
    try:
        jax.jit(jnp.negative, compiler_options=_QUICKER).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return QUICK
    return _QUICKER


def quick_flags() -> str:
    """The same for XLA_FLAGS, of a process of its own."""
    options = quick_options().items()
    return " ".join(f"--{name}={str(value).lower()}" for name, value in options)
