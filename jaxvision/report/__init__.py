"""Plots, pictures with predictions, and the report of a run. Only this package draws."""

from jaxvision.report.classification import write_classification_report
from jaxvision.report.detection import write_detection_report
from jaxvision.report.html import Section, write_page
from jaxvision.report.records import read_records
from jaxvision.report.segmentation import write_segmentation_report

__all__ = [
    "Section",
    "read_records",
    "write_classification_report",
    "write_detection_report",
    "write_page",
    "write_segmentation_report",
]
