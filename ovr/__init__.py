"""One-vs-Rest deep learning: one shared backbone, K independent sigmoid heads, one calibrated probability a class."""

__version__ = "0.1.0"
