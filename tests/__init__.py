"""Tests, laid out as `ovr/` is."""
