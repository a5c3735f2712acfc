"""Floor 1: neurons, norms, attention, stems and blocks as flax.linen modules."""
