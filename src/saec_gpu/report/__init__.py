"""An artifact as one page of HTML: sizes, errors, use of the codewords, and how the run went."""

from __future__ import annotations

from saec_gpu.report.page import report
from saec_gpu.report.sections import report_data

__all__ = ["report", "report_data"]
