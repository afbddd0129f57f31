"""The report of a model on some rows: one HTML file that needs nothing else, the same as JSON, and a CSV file a table."""

from ovr.report.files import write_report

__all__ = ["write_report"]
