"""Spiking transformers with accurate addition-only self-attention (A2OS2A), in JAX."""

from a2os2a_jax.functional import attention, neurons, spikes, surrogate

__version__ = "0.1.0"
__all__ = ["attention", "neurons", "spikes", "surrogate"]
