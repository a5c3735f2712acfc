"""Wing: weights from and to other frameworks."""
