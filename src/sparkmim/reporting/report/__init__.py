"""`report.html`: a run to look at, one file that needs nothing but itself."""

from .page import write_report

__all__ = ["write_report"]
