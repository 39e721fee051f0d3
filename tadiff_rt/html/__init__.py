"""A comparison as one HTML file that opens anywhere, offline: viewer, growth curve, tables."""

from tadiff_rt.html.page import report_html

__all__ = ["report_html"]
