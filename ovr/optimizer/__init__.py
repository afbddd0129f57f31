"""Optimizers whose state is a number a row, for more heads than a number a weight can be kept for."""
