"""From runs to what people read: HTML and Markdown pages, figures as PNG and SVG, tables as CSV."""

from frenet.report.page import export, pooled_lines, write_report
from frenet.report.results import write_results
from frenet.report.site import write_site

__all__ = ["export", "pooled_lines", "write_report", "write_results", "write_site"]
