"""Scoring of files that need not fit the memory: read in chunks, shaped into rows, answered in parts that survive a kill."""
