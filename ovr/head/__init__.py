"""Kinds of heads, and the bank of heads that are not all trained alike."""

EVERY = slice(None)  # all columns
