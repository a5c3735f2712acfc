"""Floor 2: whole models, made by `build`."""

from a2os2a_jax.models.registry import build

__all__ = ["build"]
