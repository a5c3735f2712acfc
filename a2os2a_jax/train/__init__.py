"""Floor 3: `run(config, workdir)` trains a model as a config says."""

from a2os2a_jax.train.loop import run

__all__ = ["run"]
