"""Floor 2: whole models, made by `build`; `fold` makes one ready for inference."""

from a2os2a_jax.models.fold import fold, head_orders
from a2os2a_jax.models.registry import build

__all__ = ["build", "fold", "head_orders"]
