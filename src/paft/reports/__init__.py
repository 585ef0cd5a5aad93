"""Showing the estimates: one self-contained HTML page and a Markdown table. Nothing is computed anew, only checked."""

from paft.reports.exhibit import exhibit_of
from paft.reports.page import write_report
from paft.reports.tables import markdown_table

__all__ = ["exhibit_of", "markdown_table", "write_report"]
