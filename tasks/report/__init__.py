"""The report stage: a validation as a page to read, plots and JSON."""

from tasks.report.report import write_report

__all__ = ["write_report"]
