"""Figures as PNG or SVG files, as the name that is given ends.

matplotlib is imported inside functions; no display is needed. Files are written beside
their name and renamed, so a figure is whole or absent.
"""

from a2os2a_jax.analysis.plots.activity import rate_map, token_activity
from a2os2a_jax.analysis.plots.base import check_matplotlib as check_matplotlib
from a2os2a_jax.analysis.plots.energy import energy_bars
from a2os2a_jax.analysis.plots.prediction import prediction
from a2os2a_jax.analysis.plots.raster import spike_raster
from a2os2a_jax.analysis.plots.scores import any_time, confusion, reliability
from a2os2a_jax.analysis.plots.sheet import contact_sheet
from a2os2a_jax.analysis.plots.training import training_curves

__all__ = [
    "any_time",
    "confusion",
    "contact_sheet",
    "energy_bars",
    "prediction",
    "rate_map",
    "reliability",
    "spike_raster",
    "token_activity",
    "training_curves",
]
