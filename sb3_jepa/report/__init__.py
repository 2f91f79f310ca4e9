"""A page that says what a saved model has learned, for readers without TensorBoard."""

from sb3_jepa.report.page import write_report

__all__ = ["write_report"]
