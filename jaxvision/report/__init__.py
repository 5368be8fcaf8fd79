"""Plots, pictures with predictions, and the report of a run. Only this package draws."""

from jaxvision.report.classification import write_classification_report
from jaxvision.report.html import Section, write_page
from jaxvision.report.records import read_records

__all__ = ["Section", "read_records", "write_classification_report", "write_page"]
