"""Floor 0: neurons, surrogates, spike coding and attention, on jax and numpy alone."""

from a2os2a_jax.functional import attention, neurons, spikes, surrogate

__all__ = ["attention", "neurons", "spikes", "surrogate"]
