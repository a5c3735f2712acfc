"""Floor 0: neurons, surrogates, spike coding, pools and attention, on jax and numpy."""

from a2os2a_jax.functional import attention, neurons, pooling, spikes, surrogate

__all__ = ["attention", "neurons", "pooling", "spikes", "surrogate"]
