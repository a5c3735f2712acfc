"""Floor 4: one file for each --mode, where training, data and analysis meet."""
