"""Reports: one HTML page without network, scripts or outside files, and the same as JSON."""

from polyadapt.report.result import ArmResult, RunResult
from polyadapt.report.write import write_report

__all__ = ["ArmResult", "RunResult", "write_report"]
